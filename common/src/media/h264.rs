//! Frames to chunks: one closed group of pictures each, all with the same parameter sets, so that
//! chunks made by different workers can stand side by side in one track.
//!
//! The encoder is OpenH264, built from source. Whatever would make a picture depend on more than the
//! frames since the chunk's first is off: rate control, frame skipping, scene cuts, adaptive
//! quantisation, denoising, background detection, long-term references, threads.

use super::annexb::{self, NalReader, nal_type};
use super::color::Yuv420;
use super::{MediaError, Rate, Result};
use crate::Frame;
use openh264_sys2 as sys;
use std::ptr;
use sys::API as _;

/// Quantiser of every picture. Lower than pleasing a viewer would take (20 leaves 45 dB): each chunk
/// begins with a picture that is coded afresh, and P pictures renew now more and now less. From 16 on
/// such sudden changes of the rounding errors stand out among the small changes of a calm scene, as a
/// seam would; below 11 a file grows by a third and nothing is won.
pub const DEFAULT_QP: u8 = 11;

/// Pixels of the largest picture: 36,864 macroblocks, the limit of H.264 level 5.2.
pub const MAX_PIXELS: u32 = 36_864 * 256;

const MIN_SIDE: u32 = 16;
const MAX_SIDE: u32 = 4096;

/// Encodes frames into one chunk: an Annex B stream (a playable `.h264`) with the parameter sets in
/// front, an IDR picture, then P pictures; one slice a picture.
pub struct ChunkEncoder {
    encoder: RawEncoder,
    picture: Yuv420,
    out: Vec<u8>,
    frame_count: u64,
}

impl ChunkEncoder {
    /// Width and height in pixels, frames a second, at [`DEFAULT_QP`].
    pub fn new(width: u32, height: u32, fps: f64) -> Result<Self> {
        Self::with_qp(width, height, fps, DEFAULT_QP)
    }

    /// As [`ChunkEncoder::new`] with another quantiser, 1 (best) to 51. All chunks of a film need
    /// the same one.
    pub fn with_qp(width: u32, height: u32, fps: f64, qp: u8) -> Result<Self> {
        check_size(width, height)?;
        let encoder = RawEncoder::new(width, height, Rate::from_fps(fps)?, qp.clamp(1, 51))?;
        let picture = Yuv420 {
            width,
            height,
            ..Yuv420::default()
        };
        Ok(Self {
            encoder,
            picture,
            out: Vec::new(),
            frame_count: 0,
        })
    }

    /// Appends a frame.
    pub fn push(&mut self, frame: &Frame) -> Result<()> {
        let (width, height) = (self.picture.width, self.picture.height);
        if (frame.width(), frame.height()) != (width, height) {
            return Err(MediaError::SizeChanged {
                what: "an encoded chunk".to_owned(),
                frame: self.frame_count,
                width: frame.width(),
                height: frame.height(),
                expected_width: width,
                expected_height: height,
            });
        }
        self.picture.fill_from(frame);
        let start = self.out.len();
        self.encoder.encode(&self.picture, &mut self.out)?;
        check_picture(&self.out[start..], self.frame_count == 0)?;
        self.frame_count += 1;
        Ok(())
    }

    /// Frames so far.
    pub fn frame_count(&self) -> u64 {
        self.frame_count
    }

    /// The chunk. An error when nothing was pushed.
    pub fn finish(self) -> Result<Vec<u8>> {
        if self.frame_count == 0 {
            return Err(MediaError::NoFrames("an encoded chunk".to_owned()));
        }
        Ok(self.out)
    }
}

/// See [`super::check_size`].
pub(super) fn check_size(width: u32, height: u32) -> Result<()> {
    if width == 0 || height == 0 {
        return Err(MediaError::EmptyPicture { width, height });
    }
    let sides = MIN_SIDE..=MAX_SIDE;
    let coded = |side: u32| u64::from(side).next_multiple_of(16);
    if !sides.contains(&width)
        || !sides.contains(&height)
        || coded(width) * coded(height) > u64::from(MAX_PIXELS)
    {
        return Err(MediaError::SizeOutOfRange { width, height });
    }
    if width % 2 == 1 || height % 2 == 1 {
        return Err(MediaError::OddSize { width, height });
    }
    Ok(())
}

/// Holds the encoder to its word: one slice a picture, an IDR with parameter sets first and never
/// again. The muxer and the equality of chunks rest on this.
fn check_picture(bytes: &[u8], first: bool) -> Result<()> {
    let broken = |_| MediaError::Encoder {
        step: "write a byte stream",
        code: 0,
    };
    let mut nals = NalReader::new(bytes);
    let mut kinds = Vec::new();
    while let Some(nal) = nals.next_nal().map_err(broken)? {
        kinds.push(annexb::kind(&nal));
    }
    let expected: &[u8] = if first {
        &[nal_type::SPS, nal_type::PPS, nal_type::IDR]
    } else {
        &[nal_type::SLICE]
    };
    if kinds == expected {
        return Ok(());
    }
    Err(MediaError::Encoder {
        step: "keep to one slice a picture and one IDR a chunk",
        code: 0,
    })
}

/// The library's encoder object.
struct RawEncoder {
    api: sys::DynamicAPI,
    /// Made by `WelsCreateSVCEncoder`, initialised, destroyed once, on drop.
    handle: *mut sys::ISVCEncoder,
}

// SAFETY: the object has no tie to the thread that made it (no thread-locals, and with one thread no
// threads of its own); it is used through `&mut` only.
unsafe impl Send for RawEncoder {}

impl RawEncoder {
    fn new(width: u32, height: u32, rate: Rate, qp: u8) -> Result<Self> {
        let api = sys::DynamicAPI::from_source();
        let mut handle = ptr::null_mut();
        // SAFETY: `handle` is a valid place for the pointer that the call returns.
        let code = unsafe { api.WelsCreateSVCEncoder(&mut handle) };
        if code != 0 || handle.is_null() {
            return Err(MediaError::Encoder {
                step: "start",
                code: code.into(),
            });
        }
        let mut encoder = Self { api, handle };
        encoder.initialise(width, height, rate, qp)?;
        Ok(encoder)
    }

    /// The object's functions.
    fn functions(&self) -> &sys::ISVCEncoderVtbl {
        // SAFETY: a created object points to a table that lives as long as the library.
        unsafe { &**self.handle }
    }

    fn initialise(&mut self, width: u32, height: u32, rate: Rate, qp: u8) -> Result<()> {
        const STEP: &str = "take its parameters";
        let missing = MediaError::Encoder {
            step: STEP,
            code: -1,
        };
        let table = self.functions();
        let (Some(defaults), Some(initialise), Some(set_option)) =
            (table.GetDefaultParams, table.InitializeExt, table.SetOption)
        else {
            return Err(missing);
        };
        let mut quiet: i32 = sys::WELS_LOG_QUIET;
        let mut params = sys::SEncParamExt::default();
        // SAFETY: `handle` is a live encoder; the pointers are to locals of the types that the calls
        // expect and are read or written during the calls only.
        let code = unsafe {
            set_option(
                self.handle,
                sys::ENCODER_OPTION_TRACE_LEVEL,
                (&raw mut quiet).cast(),
            );
            let code = defaults(self.handle, &mut params);
            if code == 0 {
                set_parameters(&mut params, width, height, rate, qp);
                initialise(self.handle, &params)
            } else {
                code
            }
        };
        if code == 0 {
            Ok(())
        } else {
            Err(MediaError::Encoder {
                step: STEP,
                code: code.into(),
            })
        }
    }

    /// Appends the coded picture to `out`.
    fn encode(&mut self, picture: &Yuv420, out: &mut Vec<u8>) -> Result<()> {
        const STEP: &str = "encode a frame";
        let Some(encode_frame) = self.functions().EncodeFrame else {
            return Err(MediaError::Encoder {
                step: STEP,
                code: -1,
            });
        };
        let chroma_stride = picture.width.div_ceil(2) as i32;
        let source = sys::SSourcePicture {
            iColorFormat: sys::videoFormatI420,
            iStride: [picture.width as i32, chroma_stride, chroma_stride, 0],
            pData: [
                picture.y.as_ptr().cast_mut(),
                picture.u.as_ptr().cast_mut(),
                picture.v.as_ptr().cast_mut(),
                ptr::null_mut(),
            ],
            iPicWidth: picture.width as i32,
            iPicHeight: picture.height as i32,
            ..sys::SSourcePicture::default()
        };
        let mut info = sys::SFrameBSInfo::default();
        // SAFETY: `handle` is an initialised encoder; the planes hold `height` (`height / 2`) rows of
        // their strides, as `Yuv420::fill_from` left them, and are only read during the call.
        let code = unsafe { encode_frame(self.handle, &source, &mut info) };
        if code != 0 {
            return Err(MediaError::Encoder {
                step: STEP,
                code: code.into(),
            });
        }
        for layer in info
            .sLayerInfo
            .iter()
            .take(usize::try_from(info.iLayerNum).unwrap_or(0))
        {
            append_layer(layer, out);
        }
        Ok(())
    }
}

impl Drop for RawEncoder {
    fn drop(&mut self) {
        // SAFETY: `handle` was created by this library, is destroyed once, and no call is running.
        unsafe {
            if let Some(uninitialize) = self.functions().Uninitialize {
                uninitialize(self.handle);
            }
            self.api.WelsDestroySVCEncoder(self.handle);
        }
    }
}

fn append_layer(layer: &sys::SLayerBSInfo, out: &mut Vec<u8>) {
    let nal_count = usize::try_from(layer.iNalCount).unwrap_or(0);
    if nal_count == 0 || layer.pNalLengthInByte.is_null() || layer.pBsBuf.is_null() {
        return;
    }
    // SAFETY: the encoder filled `iNalCount` lengths, whose sum is the length of the layer's buffer;
    // both stay valid until the next call to the encoder, and the slices end here.
    unsafe {
        let lengths = std::slice::from_raw_parts(layer.pNalLengthInByte, nal_count);
        let total = lengths
            .iter()
            .map(|&length| usize::try_from(length).unwrap_or(0))
            .sum();
        out.extend_from_slice(std::slice::from_raw_parts(layer.pBsBuf, total));
    }
}

fn set_parameters(params: &mut sys::SEncParamExt, width: u32, height: u32, rate: Rate, qp: u8) {
    // The library clips rates to 60; it uses them for the level only.
    let fps = rate.fps().clamp(1.0, 60.0) as f32;
    params.iUsageType = sys::CAMERA_VIDEO_REAL_TIME;
    params.iPicWidth = width as i32;
    params.iPicHeight = height as i32;
    params.fMaxFrameRate = fps;
    params.iRCMode = sys::RC_OFF_MODE;
    params.iComplexityMode = sys::MEDIUM_COMPLEXITY;
    params.iTemporalLayerNum = 1;
    params.iSpatialLayerNum = 1;
    params.uiIntraPeriod = 0;
    params.iNumRefFrame = 1;
    params.eSpsPpsIdStrategy = sys::CONSTANT_ID;
    params.bPrefixNalAddingCtrl = false;
    params.bEnableSSEI = false;
    params.iEntropyCodingModeFlag = 1;
    params.bEnableFrameSkip = false;
    params.bEnableLongTermReference = false;
    params.iMultipleThreadIdc = 1;
    params.bUseLoadBalancing = false;
    params.bEnableDenoise = false;
    params.bEnableBackgroundDetection = false;
    params.bEnableAdaptiveQuant = false;
    params.bEnableSceneChangeDetect = false;

    let layer = &mut params.sSpatialLayers[0];
    layer.iVideoWidth = width as i32;
    layer.iVideoHeight = height as i32;
    layer.fFrameRate = fps;
    layer.uiProfileIdc = sys::PRO_HIGH;
    layer.uiLevelIdc = level(width, height, fps);
    layer.iDLayerQp = qp.into();
    layer.sSliceArgument.uiSliceMode = sys::SM_SINGLE_SLICE;
    layer.sSliceArgument.uiSliceNum = 1;
    // ITU-T H.273: 1 is BT.709 for primaries, transfer and matrix.
    layer.bVideoSignalTypePresent = true;
    layer.uiVideoFormat = sys::VF_UNDEF as u8;
    layer.bFullRange = false;
    layer.bColorDescriptionPresent = true;
    layer.uiColorPrimaries = 1;
    layer.uiTransferCharacteristics = 1;
    layer.uiColorMatrix = 1;
    layer.bAspectRatioPresent = true;
    layer.eAspectRatio = sys::ASP_1x1;
}

/// The lowest of three levels whose size and rate limits (Table A-1) hold. A constant quantiser
/// promises no bit rate, so small pictures get the generous level 4.0 instead of the smallest.
fn level(width: u32, height: u32, fps: f32) -> sys::ELevelIdc {
    let macroblocks = (width.div_ceil(16) * height.div_ceil(16)) as f32;
    match (macroblocks, macroblocks * fps) {
        (size, speed) if size <= 8192.0 && speed <= 245_760.0 => sys::LEVEL_4_0,
        (_, speed) if speed <= 983_040.0 => sys::LEVEL_5_1,
        _ => sys::LEVEL_5_2,
    }
}
