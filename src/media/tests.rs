//! The content repository on a memory store and a folder of its own.

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{StreamExt as _, stream};
use hearth_pictures::Fit;
use ruma::{owned_user_id, user_id};

use super::*;

struct Bench {
    media: Media,
    now_ms: Arc<AtomicU64>,
    dir: tempfile::TempDir,
}

async fn bench(user_quota: Option<u64>, total_quota: Option<u64>) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let now_ms = Arc::new(AtomicU64::new(1_000));
    let clock: Clock = {
        let now_ms = now_ms.clone();
        Arc::new(move || now_ms.load(Ordering::Relaxed))
    };
    let folder = dir.path().join("media");
    let options = Options {
        folder,
        file_max: 100_000,
        user_quota,
        total_quota,
        disk_reserve: 0,
        copies_max: 250,
        copies_age: Duration::from_secs(3 * 24 * 3600),
    };
    let media = Media::open(Store::memory().await, options, clock).unwrap();
    Bench { media, now_ms, dir }
}

fn bytes(content: &str) -> impl Stream<Item = std::io::Result<Bytes>> + Send + use<> {
    stream::iter([Ok(Bytes::from(content.to_owned()))])
}

async fn content(media: &Media, key: &MediaKey) -> String {
    let file = media.find(key, Duration::ZERO).await.unwrap();
    let pieces: Vec<Bytes> =
        media.read(&file).await.unwrap().into_stream().map(Result::unwrap).collect().await;
    String::from_utf8(pieces.concat()).unwrap()
}

/// Files in their places and in `incoming/`.
fn files_on_disk(bench: &Bench) -> usize {
    let folders = std::fs::read_dir(bench.dir.path().join("media")).unwrap();
    folders.map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap().count()).sum()
}

#[tokio::test]
async fn an_uploaded_file_is_read_back() {
    let bench = bench(None, None).await;
    let about = About { content_type: Some("text/plain".into()), name: Some("x".repeat(300)) };
    let alice = user_id!("@alice:h.test");
    let key = bench.media.upload(alice, about, bytes("hello")).await.unwrap();
    assert_eq!(key.server(), "h.test");
    let file = bench.media.find(&key, Duration::ZERO).await.unwrap();
    assert_eq!((file.size, file.content_type.as_deref(), file.name), (5, Some("text/plain"), None));
    assert_eq!(content(&bench.media, &key).await, "hello");
    assert_eq!(bench.media.usage(alice).await.unwrap(), Usage { files: 1, bytes: 5 });
    let unknown = MediaKey::parse("h.test", "unknown").unwrap();
    assert!(matches!(bench.media.find(&unknown, Duration::ZERO).await, Err(FindError::NotFound)));
}

#[tokio::test]
async fn quotas_hold_and_refused_files_leave_nothing() {
    let bench = bench(Some(10), Some(15)).await;
    let (alice, bob) = (owned_user_id!("@alice:h.test"), owned_user_id!("@bob:h.test"));
    let upload = |user, text: &'static str| bench.media.upload(user, About::default(), bytes(text));
    upload(&alice, "12345678").await.unwrap();
    assert!(matches!(upload(&alice, "123").await, Err(UploadError::UserQuota(10))));
    upload(&alice, "12").await.unwrap();
    assert!(matches!(upload(&bob, "123456").await, Err(UploadError::TotalQuota(15))));
    upload(&bob, "12345").await.unwrap();
    assert!(matches!(upload(&bob, "1").await, Err(UploadError::TotalQuota(15))));
    assert_eq!(files_on_disk(&bench), 3);
}

#[tokio::test]
async fn a_reserved_address_is_filled_once_by_its_owner() {
    let bench = bench(None, None).await;
    let (alice, bob) = (owned_user_id!("@alice:h.test"), owned_user_id!("@bob:h.test"));
    let key = bench.media.reserve(&alice).await.unwrap().key;
    let fill = |user, text: &'static str| bench.media.fill(user, &key, About::default(), bytes(text));
    assert!(matches!(bench.media.find(&key, Duration::ZERO).await, Err(FindError::NotYetUploaded)));
    assert!(matches!(fill(&bob, "b").await, Err(UploadError::NotYours)));

    let waiting = {
        let (media, key) = (bench.media.clone(), key.clone());
        tokio::spawn(async move { media.find(&key, Duration::from_secs(20)).await })
    };
    tokio::task::yield_now().await;
    fill(&alice, "first").await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().size, 5);
    assert!(matches!(fill(&alice, "second").await, Err(UploadError::AlreadyFilled)));
    assert_eq!(content(&bench.media, &key).await, "first");

    let other = MediaKey::random(alice.server_name());
    let unknown = bench.media.fill(&alice, &other, About::default(), bytes("x")).await;
    assert!(matches!(unknown, Err(UploadError::NoSuchAddress)));
}

#[tokio::test]
async fn of_two_that_fill_an_address_at_once_one_wins() {
    let bench = bench(None, None).await;
    let alice = user_id!("@alice:h.test");
    let key = bench.media.reserve(alice).await.unwrap().key;
    let fill = |text: &'static str| bench.media.fill(alice, &key, About::default(), bytes(text));
    let (one, two) = tokio::join!(fill("one"), fill("two"));
    assert_eq!(usize::from(one.is_ok()) + usize::from(two.is_ok()), 1, "{one:?} {two:?}");
    assert_eq!(content(&bench.media, &key).await, if one.is_ok() { "one" } else { "two" });
    assert_eq!(files_on_disk(&bench), 1);
    assert_eq!(bench.media.usage(alice).await.unwrap().files, 1);
}

#[tokio::test]
async fn reservations_are_bounded_and_lapse() {
    let bench = bench(None, None).await;
    let alice = user_id!("@alice:h.test");
    let first = bench.media.reserve(alice).await.unwrap();
    assert_eq!(first.expires_ms, 1_000 + 24 * 3600 * 1000);
    for _ in 1..RESERVED_MAX {
        bench.media.reserve(alice).await.unwrap();
    }
    assert!(matches!(bench.media.reserve(alice).await, Err(UploadError::TooManyReserved)));
    bench.media.reserve(user_id!("@bob:h.test")).await.unwrap();

    bench.now_ms.store(first.expires_ms, Ordering::Relaxed);
    let late = bench.media.fill(alice, &first.key, About::default(), bytes("x")).await;
    assert!(matches!(late, Err(UploadError::NoSuchAddress)));
    assert!(matches!(bench.media.find(&first.key, Duration::ZERO).await, Err(FindError::NotFound)));
    bench.media.reserve(alice).await.unwrap();
}

#[tokio::test]
async fn thumbnails_are_made_once_and_kept() {
    let bench = bench(None, None).await;
    let alice = user_id!("@alice:h.test");
    let mut png = std::io::Cursor::new(Vec::new());
    image::DynamicImage::new_rgb8(400, 300).write_to(&mut png, image::ImageFormat::Png).unwrap();
    let pieces = stream::iter([std::io::Result::Ok(Bytes::from(png.into_inner()))]);
    let key = bench.media.upload(alice, About::default(), pieces).await.unwrap();
    let file = bench.media.find(&key, Duration::ZERO).await.unwrap();
    let frame = thumbnails::frame_for(300, 200, Fit::Scale);
    let made = bench.media.thumbnail(&file, frame).await.unwrap();
    // Without the original only a kept one can come.
    std::fs::remove_file(bench.media.0.files.place(file.id)).unwrap();
    let kept = bench.media.thumbnail(&file, frame).await.unwrap();
    assert_eq!((made.reader.size, made.format), (kept.reader.size, kept.format));

    let text = bench.media.upload(alice, About::default(), bytes("no picture")).await.unwrap();
    let text = bench.media.find(&text, Duration::ZERO).await.unwrap();
    let refused = bench.media.thumbnail(&text, frame).await;
    assert!(matches!(refused, Err(PictureError::Unsupported)));
}

#[tokio::test]
async fn old_files_that_no_row_names_are_swept_up() {
    use std::os::unix::fs::MetadataExt as _;

    let bench = bench(None, None).await;
    let (media, weak) = (&bench.media, Arc::downgrade(&bench.media.0));
    let key = media.upload(user_id!("@alice:h.test"), About::default(), bytes("kept")).await.unwrap();
    let lost = media.0.files.receive(bytes("lost"), 9).await.unwrap();
    let (id, folder) = (lost.id, bench.dir.path().join("media/00"));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("not one of ours"), "x").unwrap();
    let written_ms = std::fs::metadata(media.0.files.place(id)).unwrap().ctime() as u64 * 1000;

    let sweep_at = async |now_ms: u64| {
        bench.now_ms.store(now_ms, Ordering::Relaxed);
        sweep::sweep(&weak).await.unwrap()
    };
    let age_ms = sweep::AGE.as_millis() as u64;
    assert_eq!(sweep_at(written_ms + 2 * age_ms).await, 0, "it still waits for its row");
    drop(lost);
    assert_eq!(sweep_at(written_ms + age_ms).await, 0, "it is young");
    assert_eq!(sweep_at(written_ms + age_ms + 1001).await, 1);
    assert!(!media.0.files.place(id).exists());
    assert_eq!(sweep_at(written_ms + 2 * age_ms).await, 0);
    assert_eq!(content(media, &key).await, "kept");
    assert_eq!(files_on_disk(&bench), 2);

    drop(bench.media);
    assert!(matches!(sweep::sweep(&weak).await, Err(sweep::SweepError::Stopped)));
}

#[tokio::test]
async fn copies_make_room_for_newer_ones_and_go_when_nobody_asks() {
    let bench = bench(None, Some(10)).await;
    let key = |id: &str| MediaKey::parse("far.test", id).unwrap();
    let keep = async |id: &str| {
        bench.now_ms.fetch_add(1_000, Ordering::Relaxed);
        let about = About { content_type: Some("text/plain".into()), name: None };
        bench.media.keep_copy(&key(id), about, Bytes::from(vec![b'x'; 100])).await.unwrap()
    };
    let there = async |id: &str| bench.media.copy_of(&key(id)).await.unwrap().is_some();
    let day = 24 * 3_600_000;
    let (first, second) = (keep("a").await, keep("b").await);
    assert_eq!(keep("a").await, first, "it is here already");
    assert_eq!(files_on_disk(&bench), 2);
    // Asked for a day later, the first is the newer one.
    bench.now_ms.fetch_add(day, Ordering::Relaxed);
    assert!(there("a").await);
    keep("c").await;
    assert_eq!([there("a").await, there("b").await, there("c").await], [true, false, true]);
    assert!(bench.media.read(&second).await.is_err(), "its file is gone too");
    let sum = bench.media.0.store.get(&USAGE, &cache::COPIES.to_owned()).await.unwrap();
    assert_eq!(sum, Some(Usage { files: 2, bytes: 200 }));
    bench.now_ms.fetch_add(3 * day + 1, Ordering::Relaxed);
    bench.media.evict().await.unwrap();
    assert_eq!((there("a").await, there("c").await, files_on_disk(&bench)), (false, false, 0));
}
