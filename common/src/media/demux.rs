//! The H.264 track of an MP4 file. Boxes are walked by hand and only those that matter are decoded,
//! so that an odd box elsewhere (sound, chapters) does not spoil the video.

use super::samples::SampleTable;
use super::{MediaError, Rate, Result};
use crate::task::FilmMetadata;
use mp4_atom::{
    Atom, Avcc, Co64, Codec, Colr, Hdlr, Mdhd, Stco, Stsc, Stsd, Stsz, StszSamples, Stts,
};
use std::io::{Read, Seek, SeekFrom};

/// A larger index than this belongs to no film that this program could have made.
const MOOV_BYTES_MAX: u64 = 256 << 20;

/// What is needed to decode the track.
pub(super) struct Track {
    pub samples: SampleTable,
    pub parameter_sets: Vec<Vec<u8>>,
    /// Bytes of the length in front of each NAL unit.
    pub length_bytes: usize,
    pub rate: Option<Rate>,
    /// Matrix code and full range.
    pub color: Option<(u16, bool)>,
    pub metadata: Option<FilmMetadata>,
    /// Whether there is a track of sound beside it.
    pub has_sound: bool,
}

/// Finds the first video track. `what` names the file in errors.
pub(super) fn read_track(file: &mut (impl Read + Seek), what: &str) -> Result<Track> {
    let damaged = |why: String| MediaError::damaged(what, why);
    let file_bytes = file
        .seek(SeekFrom::End(0))
        .map_err(|error| damaged(error.to_string()))?;
    let moov = read_moov(file, file_bytes, what)?;
    let tracks = children(&moov).filter(|(kind, _)| kind == b"trak");
    let tracks: Vec<_> = tracks.map(|(_, body)| (track_kind(body), body)).collect();
    let first = |wanted: &[u8; 4]| {
        let of_kind = |(kind, _): &&(Option<[u8; 4]>, &[u8])| kind.as_ref() == Some(wanted);
        tracks.iter().find(of_kind).map(|(_, body)| *body)
    };
    let Some(track) = first(b"vide") else {
        return Err(unsupported(what, "a file without a video track"));
    };
    let media = child(track, b"mdia").unwrap_or_default();
    let table = child(media, b"minf")
        .and_then(|body| child(body, b"stbl"))
        .unwrap_or_default();
    let (avcc, color) = sample_entry(table, what)?;
    let need = |kind: &'static str| move || damaged(format!("its {kind} box is missing or broken"));

    let sizes = decode::<Stsz>(table, b"stsz")
        .ok_or_else(need("stsz"))?
        .samples;
    let runs = decode::<Stsc>(table, b"stsc")
        .ok_or_else(need("stsc"))?
        .entries;
    let short = decode::<Stco>(table, b"stco")
        .map(|stco| stco.entries.iter().map(|&at| at.into()).collect());
    let offsets: Vec<u64> = short
        .or_else(|| decode::<Co64>(table, b"co64").map(|co64| co64.entries))
        .ok_or_else(need("stco"))?;
    if matches!(&sizes, StszSamples::Different { sizes } if sizes.is_empty())
        && child(&moov, b"mvex").is_some()
    {
        return Err(unsupported(what, "a fragmented MP4"));
    }
    let samples = SampleTable::new(sizes, offsets, runs, file_bytes).map_err(damaged)?;
    let rate = rate(media, table);
    let mut parameter_sets = avcc.sequence_parameter_sets;
    parameter_sets.extend(avcc.picture_parameter_sets);
    let length_bytes = avcc.length_size.into();
    let metadata = film_metadata(&moov);
    Ok(Track {
        samples,
        parameter_sets,
        length_bytes,
        rate,
        color,
        metadata,
        has_sound: first(b"soun").is_some(),
    })
}

/// Whether a file that begins with `head` may be an MP4.
pub(super) fn looks_like_mp4(head: &[u8]) -> bool {
    let known: [&[u8]; 6] = [b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"];
    head.get(4..8).is_some_and(|kind| known.contains(&kind))
}

fn unsupported(what: &str, feature: &str) -> MediaError {
    MediaError::Unsupported {
        what: what.to_owned(),
        feature: feature.to_owned(),
    }
}

/// Body of the `moov` box.
fn read_moov(file: &mut (impl Read + Seek), file_bytes: u64, what: &str) -> Result<Vec<u8>> {
    let damaged = |why: &str| MediaError::damaged(what, why);
    let mut at = 0;
    while at < file_bytes {
        let io = |error: std::io::Error| damaged(&error.to_string());
        file.seek(SeekFrom::Start(at)).map_err(io)?;
        let mut head = [0; 16];
        let got = read_up_to(file, &mut head).map_err(io)?;
        if got < 8 {
            return Err(damaged("it ends inside a box header"));
        }
        let short = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let (header, size) = match short {
            0 => (8, file_bytes - at),
            1 if got == 16 => (16, u64::from_be_bytes(std::array::from_fn(|i| head[8 + i]))),
            1 => return Err(damaged("it ends inside a box header")),
            size => (8, size.into()),
        };
        let fits = size >= header && size <= file_bytes - at;
        if &head[4..8] == b"moov" {
            if !fits || size > MOOV_BYTES_MAX {
                return Err(damaged("its index (the moov box) is not complete"));
            }
            let mut body = Vec::new();
            file.seek(SeekFrom::Start(at + header)).map_err(io)?;
            file.by_ref()
                .take(size - header)
                .read_to_end(&mut body)
                .map_err(io)?;
            return Ok(body);
        }
        if !fits {
            break;
        }
        at += size;
    }
    Err(damaged(
        "it has no index (moov box): the recording was not finished or the file was cut",
    ))
}

fn read_up_to(file: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// Child boxes of a box body as (type, body); ends at the first that does not fit.
fn children(mut body: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let size = u32::from_be_bytes(body.get(..4)?.try_into().ok()?) as usize;
        let kind: [u8; 4] = body.get(4..8)?.try_into().ok()?;
        let (header, size) = match size {
            0 => (8, body.len()),
            1 => {
                let size = u64::from_be_bytes(body.get(8..16)?.try_into().ok()?);
                (16, usize::try_from(size).ok()?)
            }
            size => (8, size),
        };
        let content = body.get(header..size)?;
        body = &body[size..];
        Some((kind, content))
    })
}

fn child<'a>(body: &'a [u8], kind: &[u8; 4]) -> Option<&'a [u8]> {
    children(body)
        .find(|(found, _)| found == kind)
        .map(|(_, body)| body)
}

fn decode<T: Atom>(body: &[u8], kind: &[u8; 4]) -> Option<T> {
    T::decode_body(&mut child(body, kind)?).ok()
}

/// Handler type of a track.
fn track_kind(track: &[u8]) -> Option<[u8; 4]> {
    let handler = decode::<Hdlr>(child(track, b"mdia")?, b"hdlr")?;
    Some(*handler.handler.as_ref())
}

/// Decoder configuration and colours (matrix code, full range).
fn sample_entry(table: &[u8], what: &str) -> Result<(Avcc, Option<(u16, bool)>)> {
    let broken = || MediaError::damaged(what, "its stsd box is missing or broken");
    let body = child(table, b"stsd").ok_or_else(broken)?;
    // Named before it is decoded, so that the message can name what mp4-atom does not know.
    let name = body.get(12..16).ok_or_else(broken)?;
    if !matches!(name, b"avc1" | b"avc3") {
        return Err(unsupported(
            what,
            &format!("the codec '{}'", name.escape_ascii()),
        ));
    }
    let stsd = Stsd::decode_body(&mut &body[..]).map_err(|_| broken())?;
    let (avcc, colr) = match stsd.codecs.into_iter().next() {
        Some(Codec::Avc1(entry)) => (entry.avcc, entry.colr),
        Some(Codec::Avc3(entry)) => (entry.avcc, entry.colr),
        _ => return Err(broken()),
    };
    let color = match colr {
        Some(Colr::Nclx {
            matrix_coefficients,
            full_range_flag,
            ..
        }) => Some((matrix_coefficients, full_range_flag)),
        Some(Colr::Nclc {
            matrix_coefficients,
            ..
        }) => Some((matrix_coefficients, false)),
        _ => None,
    };
    Ok((avcc, color))
}

/// Mean rate over the track.
fn rate(media: &[u8], table: &[u8]) -> Option<Rate> {
    let timescale = decode::<Mdhd>(media, b"mdhd")?.timescale;
    let entries = decode::<Stts>(table, b"stts")?.entries;
    let count: u64 = entries
        .iter()
        .map(|entry| u64::from(entry.sample_count))
        .sum();
    let ticks = entries.iter().try_fold(0u64, |sum, entry| {
        sum.checked_add(u64::from(entry.sample_count).checked_mul(entry.sample_delta.into())?)
    })?;
    if let [entry] = entries.as_slice() {
        return Rate::new(timescale.into(), entry.sample_delta.into());
    }
    Rate::new(u64::from(timescale).checked_mul(count)?, ticks)
}

/// What [`super::Muxer`] wrote as comment.
fn film_metadata(moov: &[u8]) -> Option<FilmMetadata> {
    let meta = child(child(moov, b"udta")?, b"meta")?;
    let list = child(meta.get(4..)?, b"ilst")?;
    let data = child(child(list, b"\xa9cmt")?, b"data")?;
    serde_json::from_slice(data.get(8..)?).ok()
}
