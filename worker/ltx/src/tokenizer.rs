//! Text to T5 tokens, as transformers' `T5Tokenizer` does it from `spiece.model`: special tokens
//! are found as they are written, the rest is normalised by the model's character map, split at
//! white space, and each word becomes the most probable pieces (unigram).

use crate::error::{Error, Result};
use kitoken::convert::convert_sentencepiece;
use kitoken::{CharsMap, Kitoken, SpecialTokenKind};
use std::path::{Path, PathBuf};

/// Fills a prompt up to its length.
const PAD: u32 = 0;
/// Ends every prompt.
const END: u32 = 1;
/// What the model writes for a space.
const SPACE: char = '\u{2581}';
/// Longest prompt. Attention grows with the square; LTX was trained with 256.
const LENGTH_MAX: usize = 4096;
/// Special tokens by their text. T5 fixes their numbers.
const SPECIAL: [(&str, u32); 3] = [("<pad>", PAD), ("</s>", END), ("<unk>", 2)];

/// A prompt in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Token numbers, as many as were asked for.
    pub ids: Vec<u32>,
    /// How many of them are the prompt and its end mark; the rest is padding.
    pub used: usize,
    /// Set when the prompt was cut: its whole length with the end mark.
    pub cut_from: Option<usize>,
}

/// The loaded tokenizer.
pub struct Tokenizer {
    pieces: Kitoken,
    characters: Option<CharsMap>,
}

impl Tokenizer {
    /// Loads `spiece.model`.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::from_bytes(&bytes, path)
    }

    fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        let bad = |message: String| Error::Tokenizer {
            path: PathBuf::from(path),
            message,
        };
        // The parser's own words are about its insides.
        let broken = || bad("it is cut short, or no sentencepiece model at all".to_owned());
        let mut definition = convert_sentencepiece(bytes).map_err(|_| broken())?;
        for (text, id) in SPECIAL {
            let known = definition
                .specials
                .iter()
                .any(|s| s.id == id && s.bytes == text.as_bytes());
            // The unknown token is written as its surface, not as its piece.
            let unknown = |s: &kitoken::SpecialToken| s.kind == SpecialTokenKind::Unknown;
            if !known && !definition.specials.iter().any(|s| s.id == id && unknown(s)) {
                return Err(bad(format!("{text} is not token {id}")));
            }
        }
        // The converter approximates the character map by Unicode normal forms; it is applied
        // here instead, from the model itself.
        definition.config.normalization.clear();
        let characters = match character_map(bytes).map_err(&bad)? {
            [] => None,
            map => Some(parse_character_map(map).map_err(&bad)?),
        };
        let pieces = Kitoken::try_from(definition).map_err(|_| broken())?;
        Ok(Self { pieces, characters })
    }

    /// Tokens of `text` with the end mark.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut rest = text;
        while let Some((at, special, id)) = first_special(rest) {
            self.encode_plain(&rest[..at], &mut ids)?;
            ids.push(id);
            rest = &rest[at + special.len()..];
        }
        self.encode_plain(rest, &mut ids)?;
        ids.push(END);
        Ok(ids)
    }

    /// Tokens of `text`, padded or cut to `length` (at least 1); the end mark is always kept.
    pub fn encode_padded(&self, text: &str, length: usize) -> Result<Tokens> {
        if !(1..=LENGTH_MAX).contains(&length) {
            let message = format!("{length} is not in 1..{LENGTH_MAX}");
            return Err(Error::Request {
                what: "text tokens",
                message,
            });
        }
        let mut ids = self.encode(text)?;
        let whole = ids.len();
        if whole > length {
            ids.truncate(length);
            ids[length - 1] = END;
        }
        let used = ids.len();
        ids.resize(length, PAD);
        Ok(Tokens {
            ids,
            used,
            cut_from: (whole > length).then_some(whole),
        })
    }

    fn encode_plain(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let normalised = self.characters.as_ref().map(|map| map.normalize(text));
        for word in normalised.as_deref().unwrap_or(text).split_whitespace() {
            let mut piece = String::with_capacity(word.len() + SPACE.len_utf8());
            if !word.starts_with(SPACE) {
                piece.push(SPACE);
            }
            piece.push_str(word);
            let found = self
                .pieces
                .encode(&piece, false)
                .map_err(|e| Error::Request {
                    what: "prompt",
                    message: format!("cannot be tokenised: {e}"),
                })?;
            ids.extend(found);
        }
        Ok(())
    }
}

/// The first special token in `text`: where, its text and its number.
fn first_special(text: &str) -> Option<(usize, &'static str, u32)> {
    let found = SPECIAL
        .iter()
        .filter_map(|&(s, id)| text.find(s).map(|at| (at, s, id)));
    found.min_by_key(|&(at, ..)| at)
}

/// kitoken 0.11 drops the last unit of the map's trie: it is given one more to drop.
fn parse_character_map(map: &[u8]) -> std::result::Result<CharsMap, String> {
    let short = || "the character map is cut short".to_owned();
    let (size, rest) = map.split_first_chunk::<4>().ok_or_else(short)?;
    let size = u32::from_le_bytes(*size) as usize;
    let (trie, strings) = rest.split_at_checked(size).ok_or_else(short)?;
    let mut padded = ((size + 4) as u32).to_le_bytes().to_vec();
    padded.extend_from_slice(trie);
    padded.extend_from_slice(&[0; 4]);
    padded.extend_from_slice(strings);
    CharsMap::try_from(padded).map_err(|e| e.to_string())
}

/// `normalizer_spec.precompiled_charsmap` of a sentencepiece `ModelProto`; empty when absent.
fn character_map(model: &[u8]) -> std::result::Result<&[u8], String> {
    const NORMALIZER_SPEC: u64 = 3;
    const PRECOMPILED_CHARSMAP: u64 = 2;
    Ok(match bytes_field(model, NORMALIZER_SPEC)? {
        Some(spec) => bytes_field(spec, PRECOMPILED_CHARSMAP)?.unwrap_or_default(),
        None => &[],
    })
}

/// The last length-delimited field `number` of a protobuf message.
fn bytes_field(mut message: &[u8], number: u64) -> std::result::Result<Option<&[u8]>, String> {
    let mut found = None;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let length = match key & 7 {
            0 => {
                varint(&mut message)?;
                0
            }
            1 => 8,
            2 => varint(&mut message)? as usize,
            5 => 4,
            other => return Err(format!("protobuf wire type {other} is unknown")),
        };
        let Some((value, rest)) = message.split_at_checked(length) else {
            return Err("the file is cut short".into());
        };
        if key & 7 == 2 && key >> 3 == number {
            found = Some(value);
        }
        message = rest;
    }
    Ok(found)
}

fn varint(message: &mut &[u8]) -> std::result::Result<u64, String> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let Some((&byte, rest)) = message.split_first() else {
            return Err("the file is cut short".into());
        };
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number in the file is too long".into())
}
