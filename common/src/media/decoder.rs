//! H.264 to pictures, in display order.

use super::annexb::{self, nal_type};
use super::color::{ColorSpace, Planes, Yuv420};
use super::sps::Sps;
use super::{MediaError, Result};
use openh264::OpenH264API;
use openh264::decoder::{self, DecodedYUV, DecoderConfig, Flush};
use openh264::formats::YUVSource;
use std::collections::VecDeque;

/// Feeds coded pictures to OpenH264 and keeps the decoded ones until they are taken.
pub(super) struct Decoder {
    inner: decoder::Decoder,
    what: String,
    /// Matrix code and range from the container.
    container_color: Option<(u16, bool)>,
    color: ColorSpace,
    size: Option<(u32, u32)>,
    ready: VecDeque<Yuv420>,
    fed_count: u64,
    out_count: u64,
    stream: Vec<u8>,
}

impl Decoder {
    /// `what` names the source in errors.
    pub fn new(what: &str, container_color: Option<(u16, bool)>) -> Result<Self> {
        // Pictures are taken as they become ready: flushing early would break their order.
        let config = DecoderConfig::new().flush_after_decode(Flush::NoFlush);
        let inner = decoder::Decoder::with_api_config(OpenH264API::from_source(), config).map_err(
            |error| MediaError::damaged(what, format!("no decoder could be made: {error}")),
        )?;
        Ok(Self {
            inner,
            what: what.to_owned(),
            container_color,
            color: ColorSpace::default(),
            size: None,
            ready: VecDeque::new(),
            fed_count: 0,
            out_count: 0,
            stream: Vec::new(),
        })
    }

    /// Matrix and range of the pictures.
    pub fn color(&self) -> ColorSpace {
        self.color
    }

    /// Decodes one picture, given as NAL units; parameter sets may come along or alone.
    pub fn feed<'a>(&mut self, units: impl IntoIterator<Item = &'a [u8]>) -> Result<()> {
        self.stream.clear();
        let mut has_slice = false;
        for nal in units {
            match annexb::kind(nal) {
                nal_type::SPS => self.take_parameters(nal)?,
                // Supplemental information and padding change no pixel; some of it trips the library.
                nal_type::SEI | nal_type::DELIMITER | 10..=12 => continue,
                _ => has_slice |= annexb::is_slice(nal),
            }
            annexb::push_nal(&mut self.stream, nal);
        }
        if self.stream.is_empty() {
            return Ok(());
        }
        if has_slice && self.size.is_none() {
            return Err(self.damaged("a picture comes before its parameter sets"));
        }
        let index = self.fed_count;
        self.fed_count += u64::from(has_slice);
        let picture = match self.inner.decode(&self.stream) {
            Ok(picture) => picture.map(|yuv| own(&yuv)),
            Err(_) => return Err(self.damaged(&format!("picture {index} cannot be decoded"))),
        };
        picture.map_or(Ok(()), |picture| self.keep(picture))
    }

    /// Takes what the decoder still holds at the end of the stream.
    pub fn flush(&mut self) -> Result<()> {
        let rest = match self.inner.flush_remaining() {
            Ok(rest) => rest.iter().map(own).collect::<Vec<_>>(),
            Err(_) => return Err(self.damaged("the last pictures cannot be decoded")),
        };
        rest.into_iter().try_for_each(|picture| self.keep(picture))
    }

    /// The next picture in display order, when there is one.
    pub fn pop(&mut self) -> Option<Yuv420> {
        self.ready.pop_front()
    }

    /// Forgets what was not taken.
    pub fn clear(&mut self) {
        self.ready.clear();
    }

    fn take_parameters(&mut self, nal: &[u8]) -> Result<()> {
        let Some(sps) = Sps::parse(nal) else {
            return Err(self.damaged("its sequence parameters cannot be read"));
        };
        sps.check_supported(&self.what)?;
        let size = (sps.width, sps.height);
        let expected = *self.size.get_or_insert(size);
        if size != expected {
            return Err(self.size_changed(size, expected));
        }
        match sps.color(self.container_color) {
            Some(color) => self.color = color,
            None => return Err(self.damaged("its container names an unknown colour matrix")),
        }
        Ok(())
    }

    fn keep(&mut self, picture: Option<Yuv420>) -> Result<()> {
        let Some(picture) = picture else {
            return Err(self.damaged("the decoder returned an inconsistent picture"));
        };
        let size = (picture.width, picture.height);
        match self.size {
            Some(expected) if size != expected => Err(self.size_changed(size, expected)),
            _ => {
                self.out_count += 1;
                self.ready.push_back(picture);
                Ok(())
            }
        }
    }

    fn damaged(&self, why: &str) -> MediaError {
        MediaError::damaged(&self.what, why)
    }

    fn size_changed(&self, size: (u32, u32), expected: (u32, u32)) -> MediaError {
        MediaError::SizeChanged {
            what: self.what.clone(),
            frame: self.out_count,
            width: size.0,
            height: size.1,
            expected_width: expected.0,
            expected_height: expected.1,
        }
    }
}

/// Copies a picture out of the library; `None` when its planes do not hold what they claim.
fn own(yuv: &DecodedYUV<'_>) -> Option<Yuv420> {
    let (width, height) = yuv.dimensions();
    let (y_stride, u_stride, v_stride) = yuv.strides();
    let planes = Planes {
        width: u32::try_from(width).ok()?,
        height: u32::try_from(height).ok()?,
        y: (yuv.y(), y_stride),
        u: (yuv.u(), u_stride),
        v: (yuv.v(), v_stride),
    };
    planes.is_consistent().then(|| planes.to_yuv())
}
