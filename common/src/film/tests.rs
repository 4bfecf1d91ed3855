use super::*;
use crate::conditioning::Place;

fn film(text: &str) -> Result<Film, FilmError> {
    Film::parse(text.to_owned(), Path::new("film.yaml"))
}

/// The first sentence that reading or laying out `text` at 24 frames a second leads to.
fn error(text: &str) -> String {
    match film(text).and_then(|film| film.timeline(24.0)) {
        Ok(timeline) => panic!("{timeline:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn shots_follow_each_other() {
    let text = "
fps: 24
size: 64x64
seed: 7
negative: blur
shots:
  - prompt: one
    duration: 2.5
  - {prompt: two, frames: 30, seed: 9, negative: ''}
  - prompt: three
    start: 3.75
    duration: 1
    transition: cut
";
    let film = film(text).expect("a film");
    assert_eq!(
        (film.prompt(), film.negative(), film.seed()),
        ("one", Some("blur"), Some(7))
    );
    let timeline = film.timeline(24.0).expect("a timeline");
    let shot = |first_frame, transition, prompt: &str, negative: Option<&str>, seed| Shot {
        first_frame,
        transition,
        prompt: prompt.to_owned(),
        negative: negative.map(str::to_owned),
        seed,
    };
    assert_eq!(timeline.frames, 60 + 30 + 24);
    assert_eq!(
        timeline.shots,
        [
            shot(60, Transition::Continuous, "two", Some(""), Some(9)),
            shot(90, Transition::Cut, "three", None, None),
        ]
    );
}

#[test]
fn what_is_wrong_is_said_with_shot_and_line() {
    let table = [
        ("shots: []", "needs a list 'shots:'"),
        ("- prompt: x", "needs a list 'shots:'"),
        (
            "fps: 24\nshot:\n  - prompt: x\n",
            "line 2: the key 'shot' is unknown: did you mean 'shots'?",
        ),
        (
            "shots:\n  - prompt: x\n    duraton: 3\n",
            "line 3: the key 'duraton' is unknown in shot 1: did you mean 'duration'?",
        ),
        (
            "shots:\n  - duration: 3\n",
            "missing field `prompt` at line 2",
        ),
        (
            "shots:\n  - prompt: x\n    duration: long\n",
            "invalid type: string \"long\", expected f64 at line 3",
        ),
        (
            "shots:\n  - prompt: x\n    duration: 3\n  - prompt: y\n    duration: 3\n    transition: fade\n",
            "unknown variant `fade`, expected `continuous` or `cut` at line 6",
        ),
        (
            "shots:\n  - prompt: x\n",
            "line 2: shot 1 has to say how long it is",
        ),
        (
            "shots:\n  - prompt: x\n    duration: 1\n    frames: 24\n",
            "shot 1 has to say how long",
        ),
        (
            "shots:\n  - prompt: x\n    duration: 1\n  - prompt: y\n    duration: 0\n",
            "line 5: shot 2 is empty or of no possible length: 0 seconds are not a length",
        ),
        (
            "shots:\n- {prompt: x, frames: 0}\n",
            "line 2: shot 1 is empty or of no possible length: 0 frames",
        ),
        (
            "shots:\n- {prompt: x, duration: .nan}\n",
            "line 2: shot 1 is empty",
        ),
        (
            "shots:\n- {prompt: x, duration: 5}\n- {prompt: y, duration: 5}\n- prompt: z\n  duration: 5\n  start: 4\n",
            "line 6: shot 3 starts at 4 s, before shot 2 starts at 5 s: put the shots in order",
        ),
        (
            "shots:\n- {prompt: x, duration: 5}\n- {prompt: y, duration: 5}\n- prompt: z\n  duration: 5\n  start: 8\n",
            "line 6: shot 3 starts at 8 s, but shot 2 lasts until 10.000 s, so they overlap",
        ),
        (
            "shots:\n- {prompt: x, duration: 5}\n- {prompt: y, duration: 5, start: 6}\n",
            "line 3: shot 2 starts at 6 s, but what comes before it ends at 5.000 s",
        ),
        (
            "shots:\n- {prompt: x, duration: 5, start: -1}\n",
            "shot 1 has the start -1",
        ),
        (
            "shots:\n- {prompt: x, duration: 5, start: 1}\n",
            "shot 1 starts at 1 s, but what comes before",
        ),
        (
            "shots:\n- {prompt: x, duration: 5, transition: cut}\n",
            "line 2: shot 1 is the first",
        ),
        (
            "shots:\n- prompt: x\n  duration: 5\n  keyframes:\n    - frame: 0\n",
            "line 5: shot 1 has a keyframe 1 that has to name either an 'image' or a 'video'",
        ),
        (
            "shots:\n- prompt: x\n  duration: 5\n  keyframes:\n  - {image: a.png, fram: 0}\n",
            "line 5: the key 'fram' is unknown in shot 1: did you mean 'frame'?",
        ),
        (
            "shots:\n- {prompt: x, frames: 9, keyframes: [{image: a.png}, {image: a.png, frame: 9}]}\n",
            "line 2: shot 1 has a keyframe 2 that is for frame 9 of a shot of 9 frames: use frame 0 to 8",
        ),
        (
            "shots:\n- {prompt: x, frames: 9, keyframes: [{image: a.png, at: -1}]}\n",
            "a keyframe 1 that is at -1 s",
        ),
        (
            "shots:\n- {prompt: x, frames: 9, keyframes: [{image: a.png, at: 0, frame: 0}]}\n",
            "a keyframe 1 that has both 'frame' and 'at'",
        ),
        (
            "shots:\n- {prompt: x, frames: 60, keyframes: [{video: a.mp4, frame: 13}]}\n",
            "a keyframe 1 that is a clip for frame 13 of the shot: clips begin at a multiple of 8, like 8",
        ),
        (
            "shots:\n- {prompt: x, frames: 9, keyframes: [{image: a.png, strength: 2}]}\n",
            "a keyframe 1 that has the strength 2",
        ),
        (
            "shots:\n- prompt: x\n  frames: 9\n  keyframes:\n  - {image: a.png, frame: last}\n",
            "expected a frame of the shot, from 0, or 'end' at line 5",
        ),
        (
            "shots:\n- {prompt: x, duration: 1e9}\n",
            "more than 1000000 frames",
        ),
        ("shots: [\n", "at line"),
        ("", "needs a list 'shots:'"),
        ("shots: 3\n", "needs a list 'shots:'"),
        ("shots: [3]\n", "invalid type: integer `3`"),
    ];
    for (text, part) in table {
        let found = error(text);
        assert!(found.contains(part), "{text}\n{found}");
        assert!(found.contains("film.yaml"), "{found}");
    }
}

#[test]
fn times_are_compared_as_frames() {
    // 2.2 s at 24 a second are 52.8 frames, so the first shot lasts 53.
    let text = "shots:\n- {prompt: x, duration: 2.2}\n- {prompt: y, duration: 1, start: 2.2}\n";
    let timeline = film(text)
        .and_then(|film| film.timeline(24.0))
        .expect("a timeline");
    assert_eq!((timeline.shots[0].first_frame, timeline.frames), (53, 77));
}

#[test]
fn keyframes_lie_in_their_shots_and_beside_the_file() {
    let text = "
shots:
  - prompt: one
    frames: 30
    keyframes:
      - {image: a.png, frame: end, strength: 0.5}
  - prompt: two
    duration: 2
    keyframes:
      - {video: clips/b.mp4, at: 0.6}
      - {image: /c.png}
";
    let film = Film::parse(text.to_owned(), Path::new("films/film.yaml")).expect("a film");
    let timeline = film.timeline(24.0).expect("a timeline");
    let keyframe = |path: &str, is_image, place, strength, shot_start, shot_frames| Keyframe {
        path: path.into(),
        is_image,
        place,
        strength,
        shot_start,
        shot_frames,
    };
    assert_eq!(
        timeline.keyframes,
        [
            keyframe("films/a.png", true, Place::End, 0.5, 0, 30),
            keyframe("films/clips/b.mp4", false, Place::Frame(16), 1.0, 30, 48),
            keyframe("/c.png", true, Place::Frame(0), 1.0, 30, 48),
        ]
    );
}
