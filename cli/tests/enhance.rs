//! Prompts rewritten by a server that the user names.

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc;
use support::{json, run, stderr};

/// A server that answers once with `status` and `body`; its URL, and what it was asked.
fn server(status: &'static str, body: &'static str) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/v1", listener.local_addr().expect("address"));
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut request = Vec::new();
        let mut piece = [0; 4096];
        // The body is the last thing, and it is JSON.
        while !request.ends_with(b"}") {
            match stream.read(&mut piece).expect("a request") {
                0 => break,
                count => request.extend_from_slice(&piece[..count]),
            }
        }
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
        stream
            .write_all((head + body).as_bytes())
            .expect("an answer");
        let _ = sender.send(String::from_utf8_lossy(&request).into_owned());
    });
    (url, receiver)
}

const FLAGS: [&str; 7] = [
    "render",
    "a red circle",
    "--frames=1",
    "--size=64x64",
    "--steps=1",
    "--enhance-url",
    "",
];

fn flags(url: &str) -> Vec<&str> {
    let mut flags: Vec<&str> = FLAGS.to_vec();
    *flags.last_mut().expect("flags") = url;
    flags
}

#[test]
fn a_rewritten_prompt_is_rendered_and_recorded() {
    let folder = tempfile::tempdir().expect("a folder");
    let answer = r#"{"choices":[{"message":{"content":"  A red circle\nmoves left. "}}]}"#;
    let (url, asked) = server("200 OK", answer);
    let mut flags = flags(&url);
    flags.extend(["--enhance-model=small", "-o", "a.mp4", "--json"]);
    let out = run(folder.path(), &flags);
    let report = json(&out);
    assert_eq!(report["prompt"], "A red circle moves left.");
    assert!(
        stderr(&out).contains("rewritten: A red circle moves left."),
        "{}",
        stderr(&out)
    );
    let asked = asked.recv().expect("a request");
    assert!(asked.starts_with("POST /v1/chat/completions "), "{asked}");
    assert!(
        asked.contains(r#""model":"small""#) && asked.contains("a red circle"),
        "{asked}"
    );
    let film = std::fs::read(folder.path().join("a.mp4")).expect("film");
    let prompt = b"A red circle moves left.";
    assert!(
        film.windows(prompt.len()).any(|part| part == prompt),
        "the film says its prompt"
    );
}

#[test]
fn a_server_that_does_not_help_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    for (status, body, words) in [
        (
            "404 Not Found",
            "no such model",
            "404 Not Found no such model",
        ),
        ("200 OK", "hello", "does not answer in JSON"),
        ("200 OK", "{}", "answers without a prompt"),
    ] {
        let (url, _asked) = server(status, body);
        let out = run(folder.path(), flags(&url));
        assert!(!out.status.success());
        assert!(stderr(&out).contains(words), "{words}: {}", stderr(&out));
    }
    let out = run(folder.path(), flags("http://127.0.0.1:1/v1"));
    assert!(
        stderr(&out).contains("cannot have the prompt rewritten"),
        "{}",
        stderr(&out)
    );
}
