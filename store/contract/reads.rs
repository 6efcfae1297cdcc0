//! Reading: order, ranges, batches.

use hearth_store::{
    Blob, Commit, Decoder, Desc, Encoder, KeyPart, Order, Space, StartingWith, StoreError, Table,
};

use super::{Here, PAIRS, Seeded, WORDS};

fn encoded(part: &impl KeyPart) -> Vec<u8> {
    let mut out = Encoder::new();
    part.encode(&mut out);
    out.as_bytes().to_vec()
}

fn sorts<T: KeyPart + Clone + PartialEq + std::fmt::Debug>(sorted: &[T]) {
    let bytes: Vec<_> = sorted.iter().map(encoded).collect();
    assert!(bytes.is_sorted(), "{sorted:?} became {bytes:x?}");
    for (value, bytes) in sorted.iter().zip(&bytes) {
        let mut input = Decoder::new(bytes);
        assert_eq!(&T::decode(&mut input).unwrap(), value);
        input.finish().unwrap();
        let others = sorted.iter().filter(|other| *other != value);
        assert!(others.map(encoded).all(|other| !other.starts_with(bytes)), "{value:?} begins another");
    }
}

pub async fn keys_come_back_in_the_order_of_their_values(_: Here) {
    sorts(&[0_u64, 1, 255, 256, u64::MAX]);
    sorts(&[i64::MIN, -256, -1, 0, 1, i64::MAX]);
    sorts(&[false, true]);
    sorts(&[Desc(300_u32), Desc(2), Desc(0)]);
    sorts(&[[0_u8, 9], [1, 0]]);
    let mut random = Seeded::new(1);
    let mut words: Vec<Vec<u8>> =
        vec![vec![], vec![0], vec![0, 0], vec![0, 1], vec![0, 255], vec![255], vec![255, 0]];
    for _ in 0..200 {
        let length = random.below(5) as usize;
        words.push((0..length).map(|_| [0, 1, 2, 254, 255][random.below(5) as usize]).collect());
    }
    words.sort();
    words.dedup();
    sorts(&words);
    let mut pairs: Vec<(Vec<u8>, u64, Vec<u8>)> = Vec::new();
    for word in &words {
        pairs.push((word.clone(), 7, words[random.below(words.len() as u64) as usize].clone()));
        pairs.push((word.clone(), 8, vec![]));
    }
    pairs.sort();
    pairs.dedup();
    sorts(&pairs);
    words.reverse();
    sorts(&words.into_iter().map(Desc).collect::<Vec<_>>());
}

pub async fn a_range_is_read_from_both_ends_with_a_limit(here: Here) {
    let mut commit = Commit::new();
    for n in 0..100_u64 {
        commit.put(&PAIRS, &(n / 10, n % 10), &Blob(vec![n as u8].into()));
    }
    here.store.commit(commit).await.unwrap();
    let read = async |range, order, limit| {
        let rows = here.store.range(&PAIRS, range, order, limit).await.unwrap();
        rows.into_iter().map(|((a, b), _)| a * 10 + b).collect::<Vec<_>>()
    };
    assert_eq!(read(PAIRS.all(), Order::Forward, 1000).await, (0..100).collect::<Vec<_>>());
    assert_eq!(read(PAIRS.all(), Order::Backward, 1000).await, (0..100).rev().collect::<Vec<_>>());
    assert_eq!(read(PAIRS.prefix(&3_u64), Order::Forward, 3).await, [30, 31, 32]);
    assert_eq!(read(PAIRS.prefix(&3_u64), Order::Backward, 3).await, [39, 38, 37]);
    assert_eq!(read(PAIRS.all(), Order::Forward, 0).await, [0; 0]);
    assert_eq!(here.store.first(&PAIRS, PAIRS.prefix(&4_u64)).await.unwrap().unwrap().0, (4, 0));
    assert_eq!(here.store.last(&PAIRS, PAIRS.prefix(&4_u64)).await.unwrap().unwrap().0, (4, 9));
    assert_eq!(here.store.last(&PAIRS, PAIRS.prefix(&10_u64)).await.unwrap(), None);
}

pub async fn ranges_narrow_by_beginnings_of_keys(here: Here) {
    let mut commit = Commit::new();
    for n in 0..100_u64 {
        commit.put(&PAIRS, &(n / 10, n % 10), &Blob::default());
    }
    here.store.commit(commit).await.unwrap();
    let count = async |range| here.store.range(&PAIRS, range, Order::Forward, 1000).await.unwrap().len();
    assert_eq!(count(PAIRS.from_to(&2_u64, &4_u64)).await, 20);
    assert_eq!(count(PAIRS.from_to(&(2_u64, 5_u64), &4_u64)).await, 15);
    assert_eq!(count(PAIRS.all().after(&2_u64)).await, 70);
    assert_eq!(count(PAIRS.all().up_to(&2_u64)).await, 30);
    assert_eq!(count(PAIRS.prefix(&2_u64).after(&(2_u64, 6_u64))).await, 3);
    assert_eq!(count(PAIRS.prefix(&2_u64).from(&(2_u64, 6_u64))).await, 4);
    assert_eq!(count(PAIRS.prefix(&2_u64).before(&(2_u64, 6_u64))).await, 6);
    assert_eq!(count(PAIRS.prefix(&2_u64).up_to(&(2_u64, 6_u64))).await, 7);
    assert_eq!(count(PAIRS.prefix(&2_u64).up_to(&7_u64)).await, 10, "a bound only narrows");
    assert_eq!(count(PAIRS.from_to(&4_u64, &2_u64)).await, 0);
    assert_eq!(count(PAIRS.prefix(&u64::MAX)).await, 0);
}

pub async fn a_batch_of_keys_keeps_its_order(here: Here) {
    let mut commit = Commit::new();
    for (n, word) in ["a", "b", "c"].iter().enumerate() {
        commit.put(&WORDS, &word.to_string(), &(n as u64));
    }
    here.store.commit(commit).await.unwrap();
    let keys = ["c", "x", "a", "c"].map(String::from);
    assert_eq!(here.store.multi_get(&WORDS, &keys).await.unwrap(), [Some(2), None, Some(0), Some(2)]);
    assert_eq!(here.store.get(&WORDS, &"b".to_owned()).await.unwrap(), Some(1));
    assert!(!here.store.contains(&WORDS, &"x".to_owned()).await.unwrap());
}

pub async fn strings_that_begin_alike_are_a_range(here: Here) {
    const NAMES: Table<(u64, String), ()> = Table::new("names", Space(0x30));
    let mut commit = Commit::new();
    for name in ["al", "alice", "alina", "bob", ""] {
        commit.put(&NAMES, &(7, name.to_owned()), &());
        commit.put(&NAMES, &(8, name.to_owned()), &());
    }
    here.store.commit(commit).await.unwrap();
    let range = NAMES.prefix(&StartingWith(7_u64, "ali"));
    let found = here.store.range(&NAMES, range, Order::Forward, 10).await.unwrap();
    assert_eq!(found, [((7, "alice".to_owned()), ()), ((7, "alina".to_owned()), ())]);
}

pub async fn a_row_that_does_not_decode_names_its_table_and_key(here: Here) {
    const OTHER: Table<String, String> = Table::new("other", Space(0x20));
    let mut commit = Commit::new();
    commit.put(&OTHER, &"k".to_owned(), &"a word that is no number, or is it".repeat(3));
    here.store.commit(commit).await.unwrap();
    const NESTED: Table<String, hearth_store::StreamPosition> = Table::new("nested", Space(0x20));
    let error = here.store.get(&NESTED, &"k".to_owned()).await.unwrap_err();
    let StoreError::Corrupt { table, key, .. } = &error else { panic!("{error}") };
    assert_eq!((*table, key.as_str()), ("nested", "206b0001"));
}
