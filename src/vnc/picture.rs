//! A picture of a screen that is drawn row by row, and as PNG. Pure.

use std::io::{self, Write};

use super::protocol::PIXEL_LEN;

/// The longest side of a screen: four times what is sold as 4K.
pub const MAX_SIDE: u16 = 16_384;
/// The most memory for a picture, of 4 bytes a pixel: what a server says of its screen is not to be believed at any price.
/// 64 million pixels, eight times 4K.
pub const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// Columns and rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

impl Size {
    /// Whether a picture of this size may be held.
    pub fn is_usable(self) -> bool {
        let sides = [self.width, self.height];
        sides.iter().all(|side| (1..=MAX_SIDE).contains(side)) && self.bytes() <= MAX_BYTES
    }

    fn bytes(self) -> u64 {
        u64::from(self.width) * u64::from(self.height) * PIXEL_LEN as u64
    }
}

/// What is shown on a screen.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    size: Size,
    /// Rows from the top of blue, green, red, and whether the pixel has been drawn.
    pixels: Vec<[u8; PIXEL_LEN]>,
    /// How many have not.
    missing: usize,
}

/// The fourth byte of a pixel that has been drawn.
const DRAWN: u8 = 1;

impl Picture {
    /// One of which nothing is drawn yet; none if it were too large or empty.
    pub fn blank(size: Size) -> Option<Self> {
        let count = usize::from(size.width) * usize::from(size.height);
        size.is_usable().then(|| Self { size, pixels: vec![[0; PIXEL_LEN]; count], missing: count })
    }

    /// Its size.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Whether every pixel has been drawn.
    pub fn is_whole(&self) -> bool {
        self.missing == 0
    }

    /// Draws pixels, of [`PIXEL_LEN`] bytes, from a place to the right. What lies outside is left out.
    pub fn draw(&mut self, x: u16, y: u16, row: &[u8]) {
        let width = usize::from(self.size.width);
        let (from, begin) = (usize::from(x), usize::from(y) * width);
        let Some(line) = self.pixels.get_mut(begin..begin + width) else { return };
        let (row, _) = row.as_chunks::<PIXEL_LEN>();
        for (pixel, [blue, green, red, _]) in line.iter_mut().skip(from).zip(row) {
            let [.., drawn] = pixel;
            self.missing -= usize::from(*drawn != DRAWN);
            *pixel = [*blue, *green, *red, DRAWN];
        }
    }

    /// Red, green and blue of each pixel, by rows from the top.
    pub fn rows(&self) -> impl Iterator<Item = Vec<u8>> {
        let line =
            |row: &[[u8; PIXEL_LEN]]| row.iter().flat_map(|[blue, green, red, _]| [*red, *green, *blue]).collect();
        self.pixels.chunks(usize::from(self.size.width).max(1)).map(line)
    }

    /// Writes it as PNG.
    ///
    /// # Errors
    /// What `out` refuses.
    pub fn write_png(&self, out: impl Write) -> io::Result<()> {
        let mut encoder = png::Encoder::new(out, self.size.width.into(), self.size.height.into());
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        let mut writer = writer.stream_writer()?;
        for row in self.rows() {
            writer.write_all(&row)?;
        }
        Ok(writer.finish()?)
    }
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Size { width, height } = self.size;
        write!(f, "Picture({width} x {height}, {} of the pixels missing)", self.missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_bounded() {
        for (width, height, usable) in [
            (1, 1, true),
            (0, 1, false),
            (1, 0, false),
            (7680, 4320, true),
            (MAX_SIDE, 4096, true),
            (MAX_SIDE, 4097, false),
            (MAX_SIDE + 1, 1, false),
            (u16::MAX, u16::MAX, false),
        ] {
            let size = Size { width, height };
            assert_eq!(size.is_usable(), usable, "{size:?}");
        }
        assert!(Picture::blank(Size { width: 0, height: 9 }).is_none());
    }

    #[test]
    fn it_is_whole_once_every_pixel_is_drawn() {
        let mut picture = Picture::blank(Size { width: 2, height: 2 }).unwrap();
        picture.draw(0, 0, &[1, 2, 3, 9, 4, 5, 6, 9]);
        picture.draw(0, 0, &[1, 2, 3, 9, 4, 5, 6, 9]);
        picture.draw(1, 1, &[7, 8, 9, 0, 1, 1, 1, 1]);
        picture.draw(0, 2, &[0; 8]);
        picture.draw(2, 1, &[0; 8]);
        assert!(!picture.is_whole());
        picture.draw(0, 1, &[0, 0, 0, 0]);
        assert!(picture.is_whole());
        assert_eq!(picture.rows().collect::<Vec<_>>(), [[3, 2, 1, 6, 5, 4], [0, 0, 0, 9, 8, 7]]);
    }

    #[test]
    fn its_png_shows_the_same() {
        let size = Size { width: 70, height: 3 };
        let mut picture = Picture::blank(size).unwrap();
        for y in 0..size.height {
            let row: Vec<u8> = (0..u32::from(size.width) * 4).map(|n| (n * 7 + u32::from(y)) as u8).collect();
            picture.draw(0, y, &row);
        }
        let mut file = Vec::new();
        picture.write_png(&mut file).unwrap();
        let mut reader = png::Decoder::new(io::Cursor::new(file)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((frame.width, frame.height), (70, 3));
        assert_eq!(pixels, picture.rows().flatten().collect::<Vec<_>>());
    }
}
