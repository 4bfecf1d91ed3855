//! What a film's file says about itself.

use crate::task::FilmMetadata;
use mp4_atom::{Any, Atom, FourCC, Hdlr, Meta};

/// Title bytes at most: longer ones are cut, the whole prompt stands in the comment.
const TITLE_BYTES_MAX: usize = 200;

/// iTunes-style tags, which every player reads. mp4-atom knows no comment and no title, so the list
/// is written by hand.
pub(super) fn tags(metadata: &FilmMetadata) -> Meta {
    let json = serde_json::to_string(metadata).expect("metadata is plain data");
    let mut list = Vec::new();
    let title = cut(&metadata.prompt, TITLE_BYTES_MAX);
    if !title.is_empty() {
        push_tag(&mut list, b"\xa9nam", title);
    }
    push_tag(
        &mut list,
        b"\xa9too",
        &format!("longtake {}", metadata.version),
    );
    push_tag(&mut list, b"\xa9cmt", &json);
    Meta {
        hdlr: Hdlr {
            handler: FourCC::new(b"mdir"),
            name: String::new(),
        },
        items: vec![Any::Unknown(mp4_atom::Ilst::KIND, list)],
    }
}

fn push_tag(list: &mut Vec<u8>, kind: &[u8; 4], text: &str) {
    const UTF8: u32 = 1;
    let data_bytes = 16 + text.len() as u32;
    list.extend_from_slice(&(8 + data_bytes).to_be_bytes());
    list.extend_from_slice(kind);
    list.extend_from_slice(&data_bytes.to_be_bytes());
    list.extend_from_slice(b"data");
    list.extend_from_slice(&UTF8.to_be_bytes());
    list.extend_from_slice(&[0; 4]); // no country, no language
    list.extend_from_slice(text.as_bytes());
}

/// At most `bytes_max` bytes, whole characters.
fn cut(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len()))
        .rev()
        .find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_cut_between_characters() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("aé", 3), "aé");
        assert_eq!(cut("", 5), "");
    }
}
