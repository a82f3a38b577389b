//! A process that tests drive; see `zcmi_tests::worker`.

fn main() -> std::process::ExitCode {
    zcmi_tests::worker::run()
}
