// A screen that streams text from a bundle in the app's resources (a folder reference named "bundle"); without
// onnxruntime-extensions the prompt and the answer are token ids.
// Not compiled by its authors: no Swift toolchain was at hand. Libraries to link: see runtime/swift/README.md.
import Edgeslim
import SwiftUI

@main
struct EdgeslimApp: App {
    var body: some Scene { WindowGroup { ContentView() } }
}

struct ContentView: View {
    @State private var prompt = "Once upon a time"
    @State private var written = ""
    @State private var writing: Task<Void, Never>?

    var body: some View {
        VStack(alignment: .leading) {
            TextField("prompt", text: $prompt).textFieldStyle(.roundedBorder)
            Button(writing == nil ? "Write" : "Stop") { writing == nil ? start() : writing?.cancel() }
            ScrollView { Text(written).frame(maxWidth: .infinity, alignment: .leading) }
        }
        .padding()
    }

    private func start() {
        written = ""
        writing = Task {
            do {
                let folder = Bundle.main.path(forResource: "bundle", ofType: nil) ?? "bundle"
                let tokenizer = try? Tokenizer(folder: folder), decoder = try tokenizer.map { try TextDecoder($0) }
                let tokens = try tokenizer?.encode(prompt) ?? prompt.split(separator: " ").compactMap { Int32($0) }
                let session = try await Task.detached { try Session(model: Model(folder: folder)) }.value
                for try await token in session.tokens(after: tokens, maxNewTokens: 64) {
                    written += try decoder?.push(token) ?? "\(token) "
                }
            } catch {
                written += "\n\(error)"
            }
            writing = nil
        }
    }
}
