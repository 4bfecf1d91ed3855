//! What we say: results on standard output, remarks on standard error.
//!
//! `println!` and `eprintln!` end the program with a panic when nobody reads them; the lints that
//! this crate denies keep them out. A result that cannot be written is an error, unless its reader
//! has seen enough and left (`longtake plan … | head`). A remark that nobody reads is lost, and no
//! work is given up for it.

use anyhow::{Result, anyhow};
use std::fmt::Display;
use std::io::{ErrorKind, Write};

/// Writes a result and a line break to standard output.
pub fn print(text: impl Display) -> Result<()> {
    write_result(std::io::stdout().lock(), text)
}

/// Writes a line to standard error, if that can be done.
pub fn remark(text: impl Display) {
    // There is no better place to complain in.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn write_result(mut out: impl Write, text: impl Display) -> Result<()> {
    // One write for the whole text: formatted straight into a pipe, every piece would be one.
    let written = out
        .write_all(format!("{text}\n").as_bytes())
        .and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(anyhow!(
            "cannot write the result to standard output ({error}); send it elsewhere"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_has_left_is_no_error_but_a_full_disk_is() {
        let mut text = Vec::new();
        write_result(&mut text, 7).expect("written");
        assert_eq!(text, b"7\n");
        write_result(Failing(ErrorKind::BrokenPipe), "x").expect("quiet");
        let error = write_result(Failing(ErrorKind::StorageFull), "x").expect_err("an error");
        assert!(error.to_string().contains("standard output"), "{error}");
    }
}
