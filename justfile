# What one does every day. `just` lists it.

default:
    @just --list

# Run the server.
run *arguments:
    cargo run --release -- {{arguments}}

# Run the tests.
test *arguments:
    cargo test --workspace {{arguments}}

# Format, lint, and the tree's own rules.
lint:
    cargo fmt
    cargo clippy --workspace --all-targets -- -D warnings
    cargo test --release --test tidy

# Real clients against the release binary.
interop *suites:
    tests/interop/run.sh {{suites}}

# Everything that a change must pass.
check:
    .ci/run
