//! The fake Cloud Hypervisor as a program, for the tests of `vmm-glue` only.

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    std::process::exit(vmm_glue::cloud_hypervisor::fake::main(&args));
}
