// swift-tools-version:5.9
// Not compiled by its authors: no Swift toolchain was at hand. See README.md.
import PackageDescription

let package = Package(
    name: "Edgeslim",
    platforms: [.iOS(.v15), .macOS(.v12)],
    products: [.library(name: "Edgeslim", targets: ["Edgeslim"])],
    targets: [
        .systemLibrary(name: "CEdgeslim"),
        .target(name: "Edgeslim", dependencies: ["CEdgeslim"]),
    ]
)
