//! Chunks to an MP4 file: one video track, index in front, nothing encoded again.
//!
//! The payload goes to a temporary file beside the target while the tables grow by a few bytes a
//! frame; at the end index and payload are put together and the file takes its name, whole or not at
//! all. ISO/IEC 14496-12 (boxes) and 14496-15 (`avcC`) name the fields.

use super::annexb::{self, ParameterSets, PictureReader, nal_type};
use super::sps::Sps;
use super::tags::tags;
use super::temporary::temporary_beside;
use super::{MediaError, Rate, Result};
use crate::task::{FilmMetadata, Picture};
use mp4_atom::{
    Avc1, Avcc, AvccExt, Co64, Colr, Dinf, Dref, Encode, FourCC, Ftyp, Hdlr, Mdhd, Mdia, Minf,
    Moov, Mvhd, Pasp, Stbl, Stco, Stsc, StscEntry, Stsd, Stss, Stsz, StszSamples, Stts, SttsEntry,
    Tkhd, Trak, Udta, Url, Visual, Vmhd,
};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MuxReport {
    /// Frames of the film.
    pub frame_count: u32,
    /// Size of the file.
    pub bytes: u64,
}

/// Puts chunks, in order, into an MP4 file.
pub struct Muxer {
    path: PathBuf,
    width: u32,
    height: u32,
    rate: Rate,
    metadata: Option<FilmMetadata>,
    payload: BufWriter<NamedTempFile>,
    payload_bytes: u64,
    parameter_sets: Option<ParameterSets>,
    sample_sizes: Vec<u32>,
    /// 1-based numbers of samples that decoding can begin at.
    sync_samples: Vec<u32>,
    chunks: Vec<MuxedChunk>,
}

struct MuxedChunk {
    payload_offset: u64,
    sample_count: u32,
}

impl Muxer {
    /// A film of this format that will be written to `path`. `metadata` goes into the file as its
    /// comment (JSON), with the prompt as title.
    pub fn new(path: &Path, picture: &Picture, metadata: Option<&FilmMetadata>) -> Result<Self> {
        super::h264::check_size(picture.width, picture.height)?;
        Ok(Self {
            path: path.to_owned(),
            width: picture.width,
            height: picture.height,
            rate: Rate::from_fps(picture.fps)?,
            metadata: metadata.cloned(),
            payload: BufWriter::new(temporary_beside(path)?),
            payload_bytes: 0,
            parameter_sets: None,
            sample_sizes: Vec::new(),
            sync_samples: Vec::new(),
            chunks: Vec::new(),
        })
    }

    /// Appends a chunk as [`super::ChunkEncoder`] made it; returns its frames.
    pub fn push(&mut self, chunk: &[u8]) -> Result<u32> {
        let index = self.chunks.len() as u32;
        let what = format!("chunk {index}");
        let sets = annexb::parameter_sets(chunk)?;
        match &self.parameter_sets {
            None => self.take_first(sets, &what)?,
            Some(first) if *first != sets => {
                return Err(MediaError::ParameterSetsDiffer { chunk: index });
            }
            Some(_) => {}
        }
        let payload_offset = self.payload_bytes;
        let mut sample_count = 0;
        let mut pictures = PictureReader::new(chunk);
        let damaged = |error: io::Error| MediaError::damaged(what.as_str(), error.to_string());
        while let Some(units) = pictures.next_picture().map_err(damaged)? {
            if units.iter().any(|nal| self.is_foreign_parameter(nal)) {
                return Err(MediaError::ParameterSetsDiffer { chunk: index });
            }
            let sync = units.iter().any(|nal| annexb::kind(nal) == nal_type::IDR);
            if sample_count == 0 && !sync {
                return Err(MediaError::damaged(
                    what,
                    "its first picture needs an earlier one",
                ));
            }
            sample_count += u32::from(self.write_sample(&units, sync)?);
        }
        if sample_count == 0 {
            return Err(MediaError::NoFrames(what));
        }
        self.chunks.push(MuxedChunk {
            payload_offset,
            sample_count,
        });
        Ok(sample_count)
    }

    /// Frames so far.
    pub fn frame_count(&self) -> u32 {
        self.sample_sizes.len() as u32
    }

    fn take_first(&mut self, sets: ParameterSets, what: &str) -> Result<()> {
        let sps = Sps::parse(&sets.sps)
            .ok_or_else(|| MediaError::damaged(what, "its sequence parameters cannot be read"))?;
        if (sps.width, sps.height) != (self.width, self.height) {
            return Err(MediaError::SizeChanged {
                what: what.to_owned(),
                frame: 0,
                width: sps.width,
                height: sps.height,
                expected_width: self.width,
                expected_height: self.height,
            });
        }
        self.parameter_sets = Some(sets);
        Ok(())
    }

    /// Parameters inside a chunk would be lost, so they must repeat the first ones.
    fn is_foreign_parameter(&self, nal: &[u8]) -> bool {
        let first = self.parameter_sets.as_ref();
        match annexb::kind(nal) {
            nal_type::SPS => first.is_none_or(|sets| sets.sps != nal),
            nal_type::PPS => first.is_none_or(|sets| sets.pps != nal),
            _ => false,
        }
    }

    /// Writes the slices with their lengths in front; false when there are none.
    fn write_sample(&mut self, units: &[Vec<u8>], sync: bool) -> Result<bool> {
        let mut bytes = 0u32;
        for nal in units.iter().filter(|nal| annexb::is_slice(nal)) {
            let written = self.payload.write_all(&(nal.len() as u32).to_be_bytes());
            let written = written.and_then(|()| self.payload.write_all(nal));
            written.map_err(MediaError::io("write the video for", &self.path))?;
            bytes += 4 + nal.len() as u32;
        }
        if bytes > 0 {
            self.payload_bytes += u64::from(bytes);
            self.sample_sizes.push(bytes);
            if sync {
                self.sync_samples.push(self.frame_count());
            }
        }
        Ok(bytes > 0)
    }

    /// Writes the file. What stood under its name before is replaced.
    pub fn finish(mut self) -> Result<MuxReport> {
        let Some(sets) = self.parameter_sets.take() else {
            return Err(MediaError::NoFrames("the film".to_owned()));
        };
        let fail = |source| MediaError::Io {
            action: "write",
            path: self.path.clone(),
            source,
        };
        let head = self
            .head(&sets)
            .map_err(|error| fail(io::Error::other(error)))?;
        let mut out = temporary_beside(&self.path)?;
        let copied = (|| {
            self.payload.flush()?;
            let payload = self.payload.get_mut().as_file_mut();
            payload.seek(SeekFrom::Start(0))?;
            out.write_all(&head)?;
            let copied = io::copy(payload, &mut out)?;
            out.as_file().sync_all()?;
            Ok(copied)
        })();
        let copied = copied.map_err(fail)?;
        if copied != self.payload_bytes {
            return Err(fail(io::Error::other(
                "the temporary file beside it was changed",
            )));
        }
        out.persist(&self.path).map_err(|error| fail(error.error))?;
        Ok(MuxReport {
            frame_count: self.frame_count(),
            bytes: head.len() as u64 + copied,
        })
    }

    /// Everything in front of the payload: `ftyp`, `moov`, header of `mdat`.
    fn head(&self, sets: &ParameterSets) -> mp4_atom::Result<Vec<u8>> {
        let mut ftyp = Vec::new();
        Ftyp {
            major_brand: FourCC::new(b"isom"),
            minor_version: 0x200,
            compatible_brands: [b"isom", b"iso2", b"avc1", b"mp41"]
                .map(FourCC::new)
                .to_vec(),
        }
        .encode(&mut ftyp)?;
        let mdat = mdat_header(self.payload_bytes);
        // The size of the index does not depend on the offsets in it, only on their width.
        let wide = self.payload_bytes > u64::from(u32::MAX) - (1 << 28);
        let measured = self.moov(sets, 0, wide)?.len();
        let payload_at = (ftyp.len() + measured + mdat.len()) as u64;
        let moov = self.moov(sets, payload_at, wide)?;
        Ok([ftyp, moov, mdat].concat())
    }

    fn moov(&self, sets: &ParameterSets, payload_at: u64, wide: bool) -> mp4_atom::Result<Vec<u8>> {
        let (timescale, frame_ticks) = self.rate.clock();
        let duration = u64::from(self.frame_count()) * u64::from(frame_ticks);
        let mut out = Vec::new();
        Moov {
            mvhd: Mvhd {
                timescale,
                duration,
                rate: 1.into(),
                volume: 1.into(),
                next_track_id: 2,
                ..Mvhd::default()
            },
            trak: vec![self.track(sets, payload_at, wide)?],
            udta: self.metadata.as_ref().map(|metadata| Udta {
                meta: Some(tags(metadata)),
                ..Udta::default()
            }),
            ..Moov::default()
        }
        .encode(&mut out)?;
        Ok(out)
    }

    fn track(&self, sets: &ParameterSets, payload_at: u64, wide: bool) -> mp4_atom::Result<Trak> {
        let (timescale, frame_ticks) = self.rate.clock();
        let duration = u64::from(self.frame_count()) * u64::from(frame_ticks);
        Ok(Trak {
            tkhd: Tkhd {
                track_id: 1,
                duration,
                enabled: true,
                in_movie: true,
                width: (self.width as u16).into(),
                height: (self.height as u16).into(),
                ..Tkhd::default()
            },
            mdia: Mdia {
                mdhd: Mdhd {
                    timescale,
                    duration,
                    language: "und".to_owned(),
                    ..Mdhd::default()
                },
                hdlr: Hdlr {
                    handler: FourCC::new(b"vide"),
                    name: "VideoHandler".to_owned(),
                },
                minf: Minf {
                    vmhd: Some(Vmhd::default()),
                    dinf: Dinf {
                        dref: Dref {
                            entries: vec![Url::default().into()],
                        },
                    },
                    stbl: self.sample_boxes(sets, payload_at, wide)?,
                    ..Minf::default()
                },
            },
            ..Trak::default()
        })
    }

    /// Where the samples are, how long they last and how they are coded.
    fn sample_boxes(
        &self,
        sets: &ParameterSets,
        payload_at: u64,
        wide: bool,
    ) -> mp4_atom::Result<Stbl> {
        let frame_ticks = self.rate.clock().1;
        let offsets = self
            .chunks
            .iter()
            .map(|chunk| payload_at + chunk.payload_offset);
        Ok(Stbl {
            stsd: Stsd {
                codecs: vec![self.sample_entry(sets)?.into()],
            },
            stts: Stts {
                entries: vec![SttsEntry {
                    sample_count: self.frame_count(),
                    sample_delta: frame_ticks,
                }],
            },
            stss: Some(Stss {
                entries: self.sync_samples.clone(),
            }),
            stsc: Stsc {
                entries: chunk_runs(&self.chunks),
            },
            stsz: Stsz {
                samples: StszSamples::Different {
                    sizes: self.sample_sizes.clone(),
                },
            },
            stco: (!wide).then(|| Stco {
                entries: offsets.clone().map(|at| at as u32).collect(),
            }),
            co64: wide.then(|| Co64 {
                entries: offsets.collect(),
            }),
            ..Stbl::default()
        })
    }

    fn sample_entry(&self, sets: &ParameterSets) -> mp4_atom::Result<Avc1> {
        let mut avcc = Avcc::new(&sets.sps, &sets.pps)?;
        // 14496-15, 5.3.3.1.2: the high profiles say chroma format and depth again; ours is 4:2:0, 8.
        avcc.ext = (avcc.avc_profile_indication >= 100).then(AvccExt::default);
        Ok(Avc1 {
            visual: Visual {
                data_reference_index: 1,
                width: self.width as u16,
                height: self.height as u16,
                horizresolution: 72.into(),
                vertresolution: 72.into(),
                frame_count: 1,
                compressor: "".into(),
                depth: 24,
            },
            avcc,
            colr: Some(Colr::Nclx {
                colour_primaries: 1,
                transfer_characteristics: 1,
                matrix_coefficients: 1,
                full_range_flag: false,
            }),
            pasp: Some(Pasp {
                h_spacing: 1,
                v_spacing: 1,
            }),
            ..Avc1::default()
        })
    }
}

/// Equal neighbours share an entry.
fn chunk_runs(chunks: &[MuxedChunk]) -> Vec<StscEntry> {
    let mut runs: Vec<StscEntry> = Vec::new();
    for (index, chunk) in chunks.iter().enumerate() {
        if runs
            .last()
            .is_none_or(|run| run.samples_per_chunk != chunk.sample_count)
        {
            runs.push(StscEntry {
                first_chunk: index as u32 + 1,
                samples_per_chunk: chunk.sample_count,
                sample_description_index: 1,
            });
        }
    }
    runs
}

fn mdat_header(payload_bytes: u64) -> Vec<u8> {
    match u32::try_from(payload_bytes + 8) {
        Ok(size) => [&size.to_be_bytes(), &b"mdat"[..]].concat(),
        Err(_) => [
            &1u32.to_be_bytes(),
            &b"mdat"[..],
            &(payload_bytes + 16).to_be_bytes(),
        ]
        .concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Frame;
    use crate::media::ChunkEncoder;
    use crate::spec::Codec;
    use mp4_atom::Decode;

    fn muxer_with_one_chunk(folder: &Path) -> Muxer {
        let picture = Picture {
            width: 32,
            height: 16,
            fps: 24.0,
            codec: Codec::H264,
        };
        let mut encoder = ChunkEncoder::new(32, 16, 24.0).unwrap();
        encoder.push(&Frame::black(32, 16)).unwrap();
        let mut muxer = Muxer::new(&folder.join("film.mp4"), &picture, None).unwrap();
        muxer.push(&encoder.finish().unwrap()).unwrap();
        muxer
    }

    #[test]
    fn films_beyond_four_gigabytes_get_wide_offsets() {
        let folder = tempfile::tempdir().unwrap();
        for (payload_bytes, is_wide) in [(5 << 30, true), (1 << 30, false)] {
            let mut muxer = muxer_with_one_chunk(folder.path());
            muxer.chunks.push(MuxedChunk {
                payload_offset: payload_bytes - 9,
                sample_count: 1,
            });
            muxer.payload_bytes = payload_bytes;
            let sets = muxer.parameter_sets.clone().unwrap();
            let head = muxer.head(&sets).unwrap();
            let mut rest = head.as_slice();
            Ftyp::decode(&mut rest).unwrap();
            let moov = Moov::decode(&mut rest).unwrap();
            assert_eq!(rest, mdat_header(payload_bytes));
            assert_eq!(rest.len(), if is_wide { 16 } else { 8 });
            let table = &moov.trak[0].mdia.minf.stbl;
            let first = head.len() as u64;
            let expected = vec![first, first + payload_bytes - 9];
            let short = table
                .stco
                .as_ref()
                .map(|stco| stco.entries.iter().map(|&at| at.into()).collect());
            let found = short.or(table.co64.as_ref().map(|co64| co64.entries.clone()));
            assert_eq!(found, Some(expected));
            assert_eq!(
                (table.co64.is_some(), table.stco.is_some()),
                (is_wide, !is_wide)
            );
        }
    }
}
