//! What `deploy/` says is what happens: its files have the form that their readers expect, and the
//! farms that they describe render, each member started by the very command of its file, with the
//! paths, names, ports, users and environment that the file gives it. See `container` for how.

mod compose;
mod farm;
mod files;
mod image;
mod kubernetes;
mod prometheus;
mod schemas;
mod systemd;
