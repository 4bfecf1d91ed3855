//! Kernel speed.
fn main() {
    divan::main();
}
