//! A way to a server that can be slow and can be cut, and that counts what passes.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Bytes passed on at a time.
const PIECE_BYTES: usize = 64 << 10;

/// A way to a server on loopback.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Bytes that came back from the server.
    back_bytes: AtomicU64,
    /// Wait after each piece that comes back.
    pause_us: AtomicU64,
    is_cut: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// A way to `server`.
    ///
    /// # Panics
    /// When no port is free.
    pub fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                of_thread.pass(client, server);
            }
        });
        Self { address, shared }
    }

    /// Where it begins.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes that came back from the server so far.
    pub fn back_bytes(&self) -> u64 {
        self.shared.back_bytes.load(Ordering::SeqCst)
    }

    /// Lets at most about so many bytes a second come back over each connection.
    pub fn limit(&self, bytes_per_second: u64) {
        let pause_us = 1_000_000 * PIECE_BYTES as u64 / bytes_per_second.max(1);
        self.shared.pause_us.store(pause_us, Ordering::SeqCst);
    }

    /// Ends every connection, and each new one at once.
    ///
    /// # Panics
    /// When a thread of it has.
    pub fn cut(&self) {
        self.shared.is_cut.store(true, Ordering::SeqCst);
        for stream in self.shared.open.lock().expect("no panic").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Lets connections through again.
    pub fn mend(&self) {
        self.shared.is_cut.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    fn pass(self: &Arc<Self>, client: TcpStream, server: SocketAddr) {
        if self.is_cut.load(Ordering::SeqCst) {
            return;
        }
        let Ok(server) = TcpStream::connect(server) else {
            return;
        };
        let both = (client.try_clone(), server.try_clone());
        let (Ok(client_back), Ok(server_back)) = both else {
            return;
        };
        let mut open = self.open.lock().expect("no panic");
        open.extend(
            [client.try_clone(), server.try_clone()]
                .into_iter()
                .flatten(),
        );
        drop(open);
        std::thread::spawn(move || pump(client, server, |_| {}));
        let shared = self.clone();
        std::thread::spawn(move || {
            pump(server_back, client_back, |bytes| {
                shared.back_bytes.fetch_add(bytes as u64, Ordering::SeqCst);
                let pause_us = shared.pause_us.load(Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(pause_us));
            });
        });
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, passed: impl Fn(usize)) {
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
        passed(read);
    }
    let _ = to.shutdown(Shutdown::Both);
}
