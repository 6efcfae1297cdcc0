//! Pictures made smaller. Pure but for reading the file: what comes in is hostile, so its dimensions are
//! checked before anything is decoded, and what a decoder may allocate is bounded.
//!
//! A package of its own because the resampling is the largest piece of machine code in the server: here it is
//! compiled once, not with every change of what calls it.

use std::{
    fs::File,
    io::{BufRead, BufReader, Seek},
};

use fast_image_resize::{
    FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer,
    images::{Image, ImageRef},
};
use image::{
    DynamicImage, ExtendedColorType, ImageDecoder as _, ImageEncoder as _, ImageFormat, ImageReader, Limits,
    codecs::{
        jpeg::JpegEncoder,
        png::{CompressionType, FilterType as PngFilter, PngEncoder},
    },
};

/// The widest and highest picture that is decoded.
const SIDE_MAX: u32 = 16_384;
/// The most bytes that a decoded picture may have.
const DECODED_MAX: u64 = 128 << 20;
/// JPEG quality, of 100.
const QUALITY: u8 = 80;

/// How a picture becomes smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fit {
    /// As large as fits into the frame, all of it visible.
    Scale,
    /// Filling the frame, the middle of it visible.
    Crop,
}

/// What a picture is to be fitted into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    pub width: u32,
    pub height: u32,
    pub fit: Fit,
}

/// Why there is no thumbnail.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    #[error("this is no picture of a kind that can be made smaller")]
    Unsupported,
    #[error("the picture is too large to be made smaller")]
    TooLarge,
    #[error("the picture is damaged: {0}")]
    Damaged(image::ImageError),
    #[error("the picture could not be read")]
    Io(#[from] std::io::Error),
}

impl From<image::ImageError> for PictureError {
    fn from(error: image::ImageError) -> Self {
        match error {
            image::ImageError::Unsupported(_) => Self::Unsupported,
            image::ImageError::Limits(_) => Self::TooLarge,
            image::ImageError::IoError(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
                Self::Io(error)
            }
            error => Self::Damaged(error),
        }
    }
}

/// A small picture, encoded.
#[derive(Debug)]
pub struct Small {
    pub format: SmallFormat,
    pub bytes: Vec<u8>,
}

/// How small pictures are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmallFormat {
    Jpeg,
    /// What has transparent parts.
    Png,
}

impl SmallFormat {
    pub const ALL: [Self; 2] = [Self::Jpeg, Self::Png];

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
        }
    }

    pub fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
        }
    }
}

/// Recognises a picture by its content (what its uploader called it says nothing), decodes it (of an animated one
/// the first frame), turns it upright, and fits it.
pub fn shrink(file: File, frame: Frame) -> Result<Small, PictureError> {
    shrink_from(BufReader::with_capacity(64 * 1024, file), frame)
}

fn shrink_from(file: impl BufRead + Seek, frame: Frame) -> Result<Small, PictureError> {
    let mut reader = ImageReader::new(file).with_guessed_format()?;
    if !matches!(
        reader.format(),
        Some(ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::Gif | ImageFormat::WebP)
    ) {
        return Err(PictureError::Unsupported);
    }
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(SIDE_MAX);
    limits.max_image_height = Some(SIDE_MAX);
    limits.max_alloc = Some(DECODED_MAX);
    reader.limits(limits);
    let mut decoder = reader.into_decoder()?;
    if decoder.total_bytes() > DECODED_MAX {
        return Err(PictureError::TooLarge);
    }
    let upright = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    // The frame is for the upright picture; turning the small one is cheaper.
    let turned = matches!(upright.to_exif(), 5..=8);
    let frame = if turned { Frame { width: frame.height, height: frame.width, ..frame } } else { frame };
    let picture = flatten(DynamicImage::from_decoder(decoder)?);
    let mut small = resize(picture, frame)?;
    small.apply_orientation(upright);
    encode(&small)
}

/// Eight bits a channel, with as few channels as the picture has.
fn flatten(picture: DynamicImage) -> DynamicImage {
    match picture {
        DynamicImage::ImageLuma8(_)
        | DynamicImage::ImageLumaA8(_)
        | DynamicImage::ImageRgb8(_)
        | DynamicImage::ImageRgba8(_) => picture,
        DynamicImage::ImageLuma16(_) => picture.into_luma8().into(),
        _ if picture.color().has_alpha() => picture.into_rgba8().into(),
        _ => picture.into_rgb8().into(),
    }
}

/// The size that a picture of `width` x `height` gets in a frame. Never more than it has.
fn target(width: u32, height: u32, frame: Frame) -> (u32, u32) {
    let ratios = (f64::from(frame.width) / f64::from(width), f64::from(frame.height) / f64::from(height));
    let part = |side: u32, ratio: f64| ((f64::from(side) * ratio).round() as u32).clamp(1, side.max(1));
    match frame.fit {
        Fit::Scale => {
            let ratio = ratios.0.min(ratios.1).min(1.0);
            (part(width, ratio), part(height, ratio))
        }
        Fit::Crop => {
            // A frame larger than the picture shrinks until it lies within.
            let ratio = (1.0 / ratios.0).min(1.0 / ratios.1).min(1.0);
            (part(frame.width, ratio).min(width), part(frame.height, ratio).min(height))
        }
    }
}

fn resize(picture: DynamicImage, frame: Frame) -> Result<DynamicImage, PictureError> {
    let (width, height) = target(picture.width(), picture.height(), frame);
    if (width, height) == (picture.width(), picture.height()) {
        return Ok(picture);
    }
    let pixels = match &picture {
        DynamicImage::ImageLuma8(_) => PixelType::U8,
        DynamicImage::ImageLumaA8(_) => PixelType::U8x2,
        DynamicImage::ImageRgb8(_) => PixelType::U8x3,
        _ => PixelType::U8x4,
    };
    let source = ImageRef::new(picture.width(), picture.height(), picture.as_bytes(), pixels);
    let source = source.map_err(|_| PictureError::Unsupported)?;
    let mut small = Image::new(width, height, pixels);
    let mut options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    if frame.fit == Fit::Crop {
        options = options.fit_into_destination(Some((0.5, 0.5)));
    }
    Resizer::new().resize(&source, &mut small, &options).map_err(|_| PictureError::Unsupported)?;
    let bytes = small.into_vec();
    let small = match pixels {
        PixelType::U8 => image::GrayImage::from_raw(width, height, bytes).map(DynamicImage::from),
        PixelType::U8x2 => image::GrayAlphaImage::from_raw(width, height, bytes).map(DynamicImage::from),
        PixelType::U8x3 => image::RgbImage::from_raw(width, height, bytes).map(DynamicImage::from),
        _ => image::RgbaImage::from_raw(width, height, bytes).map(DynamicImage::from),
    };
    small.ok_or(PictureError::Unsupported)
}

fn encode(picture: &DynamicImage) -> Result<Small, PictureError> {
    let mut bytes = Vec::new();
    let (width, height, color) =
        (picture.width(), picture.height(), ExtendedColorType::from(picture.color()));
    let format = if picture.color().has_alpha() { SmallFormat::Png } else { SmallFormat::Jpeg };
    match format {
        SmallFormat::Png => PngEncoder::new_with_quality(
            &mut bytes,
            CompressionType::Fast,
            PngFilter::Adaptive,
        )
        .write_image(picture.as_bytes(), width, height, color)?,
        SmallFormat::Jpeg => JpegEncoder::new_with_quality(&mut bytes, QUALITY).write_image(
            picture.as_bytes(),
            width,
            height,
            color,
        )?,
    }
    Ok(Small { format, bytes })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const fn frame(width: u32, height: u32, fit: Fit) -> Frame {
        Frame { width, height, fit }
    }

    fn png(picture: &DynamicImage) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    fn shrink(file: &[u8], frame: Frame) -> Result<Small, PictureError> {
        shrink_from(Cursor::new(file), frame)
    }

    fn size(small: &Small) -> (u32, u32) {
        let picture = image::load_from_memory(&small.bytes).unwrap();
        (picture.width(), picture.height())
    }

    #[test]
    fn sizes_follow_the_frame_and_never_grow() {
        for (picture, frame, expected) in [
            ((1280, 960), frame(320, 240, Fit::Scale), (320, 240)),
            ((1280, 320), frame(320, 240, Fit::Scale), (320, 80)),
            ((100, 50), frame(320, 240, Fit::Scale), (100, 50)),
            ((3000, 1), frame(320, 240, Fit::Scale), (320, 1)),
            ((1280, 960), frame(96, 96, Fit::Crop), (96, 96)),
            ((64, 48), frame(96, 96, Fit::Crop), (48, 48)),
            ((64, 200), frame(96, 96, Fit::Crop), (64, 64)),
            ((1, 1), frame(96, 96, Fit::Crop), (1, 1)),
        ] {
            assert_eq!(target(picture.0, picture.1, frame), expected, "{picture:?} {frame:?}");
            let file = png(&DynamicImage::new_rgb8(picture.0, picture.1));
            assert_eq!(size(&shrink(&file, frame).unwrap()), expected, "{picture:?} {frame:?}");
        }
    }

    #[test]
    fn transparent_pictures_stay_transparent() {
        let scale = frame(32, 24, Fit::Scale);
        assert_eq!(shrink(&png(&DynamicImage::new_rgba8(64, 64)), scale).unwrap().format, SmallFormat::Png);
        assert_eq!(
            shrink(&png(&DynamicImage::new_luma_a16(64, 64)), scale).unwrap().format,
            SmallFormat::Png
        );
        assert_eq!(shrink(&png(&DynamicImage::new_rgb16(64, 64)), scale).unwrap().format, SmallFormat::Jpeg);
        assert_eq!(shrink(&png(&DynamicImage::new_luma8(64, 64)), scale).unwrap().format, SmallFormat::Jpeg);
    }

    #[test]
    fn hostile_files_are_refused_before_they_take_memory() {
        let scale = frame(32, 24, Fit::Scale);
        assert!(matches!(shrink(b"<svg/>", scale), Err(PictureError::Unsupported)));
        assert!(matches!(shrink(b"", scale), Err(PictureError::Unsupported)));
        // A header that promises 30,000 x 30,000 pixels, and nothing behind it.
        let mut bomb = png(&DynamicImage::new_rgb8(1, 1));
        bomb[16..24].copy_from_slice(&[0, 0, 0x75, 0x30, 0, 0, 0x75, 0x30]);
        let checksum = crc32(&bomb[12..29]).to_be_bytes();
        bomb[29..33].copy_from_slice(&checksum);
        assert!(matches!(shrink(&bomb, scale), Err(PictureError::TooLarge)));
        bomb[16..24].copy_from_slice(&[0, 0, 0x3a, 0x98, 0, 0, 0x3a, 0x98]);
        let checksum = crc32(&bomb[12..29]).to_be_bytes();
        bomb[29..33].copy_from_slice(&checksum);
        assert!(matches!(shrink(&bomb, scale), Err(PictureError::TooLarge)));
        let whole = png(&DynamicImage::new_rgb8(300, 300));
        assert!(matches!(shrink(&whole[..whole.len() / 2], scale), Err(PictureError::Damaged(_))));
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
    }
}
