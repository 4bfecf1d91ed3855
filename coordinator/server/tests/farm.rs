//! The whole coordinator over loopback, with workers that are tonic clients.

mod support;

use longtake_common::conditioning::{Conditioning, Role};
use longtake_common::ids::Hash;
use longtake_common::task::Work;
use longtake_proto::v1;
use longtake_proto::v1::coordinator_message::Message as FromCoordinator;
use longtake_proto::v1::worker_message::Message as ToCoordinator;
use longtake_server::{Coordinator, StartError};
use support::*;
use tonic::Code;

#[tokio::test]
async fn a_job_is_made_into_a_film() {
    let folder = tempfile::tempdir().expect("folder");
    let handle = start(folder.path()).await.expect("start");
    let mut user = user(&handle).await;
    let reply = submit(&mut user, &spec()).await;
    assert!(!reply.continued);
    assert!(
        submit(&mut user, &spec()).await.continued,
        "the same job is not made twice"
    );

    let (mut one, mut two) = (
        Worker::new(&handle, "one").await,
        Worker::new(&handle, "two").await,
    );
    let one = tokio::spawn(async move { one.work().await });
    let two = tokio::spawn(async move { two.work().await });
    let done = |job: &v1::Job| job.state() == v1::JobState::Done;
    let job = watch_until(&mut user, &reply.job, done).await;
    one.abort();
    two.abort();

    assert_eq!(job.progress, 1.0);
    let frames: Vec<_> = job
        .segments
        .iter()
        .map(|s| (s.first_frame, s.frames))
        .collect();
    assert_eq!(frames, [(0, 121), (104, 121), (208, 80)]);
    assert!(
        job.segments
            .iter()
            .all(|s| s.done && s.attempts == 1 && !s.reused)
    );
    assert!(job.segments.iter().all(|s| s.latents.is_some()));
    assert_eq!(
        job.chunks.len(),
        5,
        "three interiors and two seams: {:?}",
        job.chunks
    );
    assert!(job.workers_peak_rss_bytes >= 4000);

    let artifact = job.video.expect("a film");
    let mut pieces = user
        .fetch(v1::FetchRequest {
            artifact: artifact.clone(),
            job: job.job.clone(),
        })
        .await
        .expect("fetch")
        .into_inner();
    let mut film = Vec::new();
    while let Some(piece) = pieces.message().await.expect("piece") {
        film.extend(piece.data);
    }
    assert_eq!(Hash::of(&film).to_string(), artifact);
    handle.shutdown().await;
}

#[tokio::test]
async fn a_coordinator_that_is_started_again_goes_on() {
    let folder = tempfile::tempdir().expect("folder");
    let handle = start(folder.path()).await.expect("start");
    let reply = submit(&mut user(&handle).await, &spec()).await;
    let mut worker = Worker::new(&handle, "one").await;
    let text = worker.assignment().await;
    worker.finish(&text).await;
    let denoise = worker.assignment().await;
    assert_eq!(denoise.task.0, "denoise/0");
    // Stopped with the window in the worker's hands.
    handle.shutdown().await;
    assert!(worker.next().await.is_none() || worker.next().await.is_none());

    let handle = start(folder.path()).await.expect("start again");
    let mut user = user(&handle).await;
    let again = submit(&mut user, &spec()).await;
    assert_eq!(
        (again.job.as_str(), again.continued),
        (reply.job.as_str(), true)
    );
    // It comes back with the window and reports it under the token of the earlier term.
    let mut worker = Worker::attach(&handle, register("one", vec![running(&denoise)]))
        .await
        .expect("attach");
    assert!(worker.welcome.epoch > denoise.epoch.0);
    worker.finish(&denoise).await;
    let Some(FromCoordinator::Ack(ack)) = worker.next().await else {
        panic!("the result of the earlier term is taken");
    };
    assert_eq!(
        (ack.task.as_str(), ack.token),
        ("denoise/0", denoise.token.0)
    );
    let decode = worker.assignment().await;
    assert_eq!(
        decode.task.0, "decode/0",
        "neither text nor denoise/0 is done again"
    );
    assert!(decode.token > denoise.token);
    worker.finish(&decode).await;
    let next = worker.assignment().await;
    assert_eq!(next.task.0, "denoise/1");
    let Work::Denoise {
        conditioning: Some(_),
        ..
    } = &next.work
    else {
        panic!("it continues the window before");
    };
    worker.finish(&next).await;
    worker.work().await;
    let job = user
        .get(v1::JobRequest { job: reply.job })
        .await
        .expect("get")
        .into_inner();
    assert_eq!(job.state(), v1::JobState::Done);
    assert!(
        job.segments.iter().all(|segment| segment.attempts == 1),
        "nothing was lost"
    );
}

#[tokio::test]
async fn work_of_a_worker_that_vanishes_is_given_to_another() {
    let folder = tempfile::tempdir().expect("folder");
    let handle = start(folder.path()).await.expect("start");
    let mut user = user(&handle).await;
    let job = submit(&mut user, &spec()).await.job;
    let mut first = Worker::new(&handle, "first").await;
    let lost = first.assignment().await;
    let mut second = Worker::new(&handle, "second").await;
    drop(first);
    let again = second.assignment().await;
    assert_eq!((&again.task, again.attempt), (&lost.task, 2));
    assert!(again.token > lost.token);

    // The first one comes back too late: it is told to forget.
    let mut first = Worker::attach(&handle, register("first", vec![running(&lost)]))
        .await
        .expect("attach");
    let Some(FromCoordinator::Revoke(revoke)) = first.next().await else {
        panic!("the work was given to another");
    };
    assert_eq!(
        (revoke.task, revoke.token),
        (lost.task.to_string(), lost.token.0)
    );
    first.finish(&lost).await;
    let Some(FromCoordinator::Revoke(_)) = first.next().await else {
        panic!("a result with an older token is refused");
    };
    second.finish(&again).await;
    watch_until(&mut user, &job, |job| job.segments[0].attempts == 1).await;
}

#[tokio::test]
async fn a_silent_worker_loses_its_lease_and_its_connection() {
    let folder = tempfile::tempdir().expect("folder");
    let handle = start(folder.path()).await.expect("start");
    let mut user = user(&handle).await;
    submit(&mut user, &spec()).await;
    let mut silent = Worker::new(&handle, "silent").await;
    let lost = silent.assignment().await;
    let mut other = Worker::new(&handle, "other").await;
    let alive = tokio::time::timeout(PATIENCE, async {
        loop {
            tokio::select! {
                again = other.assignment() => return again,
                () = tokio::time::sleep(std::time::Duration::from_millis(400)) => {}
            }
            other.heartbeat(vec![]).await;
        }
    });
    let again = alive.await.expect("within the lease");
    assert_eq!(again.task, lost.task);
    assert!(silent.next().await.is_none(), "its connection is closed");
}

#[tokio::test]
async fn a_second_coordinator_on_one_state_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let _first = start(folder.path()).await.expect("start");
    let error = start(folder.path())
        .await
        .err()
        .expect("refused")
        .to_string();
    assert!(error.contains("in use by another coordinator"), "{error}");
}

#[tokio::test]
async fn addresses_are_checked() {
    let folder = tempfile::tempdir().expect("folder");
    let handle = start(folder.path()).await.expect("start");
    let mut taken = config(&folder.path().join("other"));
    taken.listen = handle.addr();
    let error = Coordinator::start(taken.clone())
        .await
        .err()
        .expect("in use");
    assert!(
        matches!(error, StartError::Address { listen } if listen == handle.addr()),
        "{error}"
    );
    taken.listen = "0.0.0.0:0".parse().expect("address");
    let error = Coordinator::start(taken.clone())
        .await
        .err()
        .expect("exposed")
        .to_string();
    assert!(error.contains("--insecure"), "{error}");
    taken.insecure = true;
    let open = Coordinator::start(taken).await.expect("the user insists");
    open.shutdown().await;
}

#[tokio::test]
async fn bad_requests_are_answered() {
    let folder = tempfile::tempdir().expect("folder");
    let handle = start(folder.path()).await.expect("start");
    let mut user = user(&handle).await;
    let mut bad = longtake_server::convert::spec_to_proto(&spec());
    bad.segment_frames = 120;
    let status = user
        .submit(v1::SubmitRequest {
            spec: Some(bad),
            isa: None,
            ranks: None,
        })
        .await
        .expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("113 or 121"), "{status}");
    let status = user
        .submit(v1::SubmitRequest {
            spec: None,
            isa: None,
            ranks: None,
        })
        .await
        .expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    let status = user
        .get(v1::JobRequest {
            job: "j-none".into(),
        })
        .await
        .expect_err("no job");
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("j-none"), "{status}");
    for (artifact, code) in [
        ("../../etc/passwd".to_owned(), Code::InvalidArgument),
        (Hash::of(b"nothing").to_string(), Code::NotFound),
    ] {
        let status = user
            .fetch(v1::FetchRequest {
                artifact,
                job: String::new(),
            })
            .await
            .expect_err("refused");
        assert_eq!(status.code(), code, "{status}");
    }
    for (change, code) in [
        (
            (|r| r.version = "0.0.0".into()) as fn(&mut v1::Register),
            Code::FailedPrecondition,
        ),
        (|r| r.name = String::new(), Code::InvalidArgument),
        (|r| r.name = "a#b".into(), Code::InvalidArgument),
    ] {
        let mut register = register("one", vec![]);
        change(&mut register);
        let status = Worker::attach(&handle, register)
            .await
            .err()
            .expect("refused");
        assert_eq!(status.code(), code, "{status}");
    }
}

#[tokio::test]
async fn a_failing_task_ends_its_job_with_the_reason() {
    let folder = tempfile::tempdir().expect("folder");
    let handle = start(folder.path()).await.expect("start");
    let mut user = user(&handle).await;
    let job = submit(&mut user, &spec()).await.job;
    let mut worker = Worker::new(&handle, "one").await;
    for attempt in 1..=3 {
        let assignment = worker.assignment().await;
        assert_eq!(assignment.attempt, attempt);
        worker
            .say(ToCoordinator::Failed(v1::Failed {
                lost_gang: false,
                unreached_rank: None,

                epoch: worker.welcome.epoch,
                job: assignment.job.to_string(),
                task: assignment.task.to_string(),
                token: assignment.token.0,
                error: "the disk is full".into(),
                retryable: true,
                lost_inputs: vec![],
                log: None,
                no_room: false,
                leaving: false,
                halfway: None,
            }))
            .await;
    }
    let view = watch_until(&mut user, &job, |job| job.state() == v1::JobState::Failed).await;
    assert_eq!(
        view.error,
        "text failed on one after 3 tries: the disk is full"
    );
    assert!(
        !submit(&mut user, &spec()).await.continued,
        "a failed job is begun anew"
    );
}

#[tokio::test]
async fn a_cancelled_job_is_taken_from_its_workers() {
    let folder = tempfile::tempdir().expect("folder");
    let handle = start(folder.path()).await.expect("start");
    let mut user = user(&handle).await;
    let job = submit(&mut user, &spec()).await.job;
    let mut worker = Worker::new(&handle, "one").await;
    let assignment = worker.assignment().await;
    let view = user
        .cancel(v1::JobRequest { job: job.clone() })
        .await
        .expect("cancel")
        .into_inner();
    assert_eq!(view.state(), v1::JobState::Cancelled);
    let Some(FromCoordinator::Revoke(revoke)) = worker.next().await else {
        panic!("its work is revoked");
    };
    assert_eq!(revoke.token, assignment.token.0);
    let listed = user
        .list(v1::ListRequest {})
        .await
        .expect("list")
        .into_inner()
        .jobs;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].state(), v1::JobState::Cancelled);
}

#[tokio::test]
async fn a_job_with_pictures_is_taken_once_they_are_stored() {
    let folder = tempfile::tempdir().expect("folder");
    let handle = start(folder.path()).await.expect("start");
    let mut user = user(&handle).await;
    let pack = b"pictures".to_vec();
    let hash = Hash::of(&pack);
    let held = longtake_common::JobSpec {
        conditioning: vec![Conditioning {
            packs: vec![hash],
            frames: 1,
            first_frame: 0,
            strength: 1.0,
            softened: false,
            role: Role::Shown,
        }],
        ..spec()
    };
    let request = || v1::SubmitRequest {
        spec: Some(longtake_server::convert::spec_to_proto(&held)),
        isa: None,
        ranks: None,
    };
    let refused = user.submit(request()).await.expect_err("not stored");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(
        refused
            .message()
            .contains("clip 1 of the job is not stored")
    );
    let mut store = async |artifact: String| {
        let data = pack.clone();
        let pieces = tokio_stream::iter([v1::StoreRequest { artifact, data }]);
        user.store(pieces).await.map_err(|status| status.code())
    };
    let other = Hash::of(b"other").to_string();
    assert_eq!(
        store(other).await.expect_err("a lie"),
        Code::InvalidArgument
    );
    store(hash.to_string()).await.expect("stored");
    user.submit(request()).await.expect("taken");
    handle.shutdown().await;
}
