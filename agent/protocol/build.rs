//! Makes Rust of the .proto files.

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

const FILES: [&str; 5] = [
    "proto/agent.proto",
    "proto/csi.proto",
    "proto/health.proto",
    "proto/oci.proto",
    "proto/types.proto",
];

fn main() {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let made = Codegen::new()
        .inputs(FILES)
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(true))
        .customize(Customize { async_all: true, ..Customize::default() })
        .out_dir(&out)
        .run();
    if let Err(error) = made {
        panic!("the .proto files do not compile: {error}");
    }
    // The generator lists the messages' modules alone.
    let list = std::path::Path::new(&out).join("mod.rs");
    let modules = std::fs::read_to_string(&list).expect("the generator wrote mod.rs");
    let services = "pub mod agent_ttrpc;\npub mod health_ttrpc;\n";
    std::fs::write(&list, modules + services).expect("OUT_DIR can be written");
}
