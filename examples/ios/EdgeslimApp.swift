// A screen that streams tokens from a bundle in the app's resources (a folder reference named "bundle").
// Not compiled by its authors: no Swift toolchain was at hand. Libraries to link: see runtime/swift/README.md.
import Edgeslim
import SwiftUI

@main
struct EdgeslimApp: App {
    var body: some Scene { WindowGroup { ContentView() } }
}

struct ContentView: View {
    @State private var prompt = "5 60 7 200"
    @State private var written = ""
    @State private var writing: Task<Void, Never>?

    var body: some View {
        VStack(alignment: .leading) {
            TextField("token ids", text: $prompt).textFieldStyle(.roundedBorder)
            Button(writing == nil ? "Write" : "Stop") { writing == nil ? start() : writing?.cancel() }
            ScrollView { Text(written).frame(maxWidth: .infinity, alignment: .leading) }
        }
        .padding()
    }

    private func start() {
        written = ""
        let tokens = prompt.split(separator: " ").compactMap { Int32($0) }
        writing = Task {
            do {
                let folder = Bundle.main.path(forResource: "bundle", ofType: nil) ?? "bundle"
                let session = try await Task.detached { try Session(model: Model(folder: folder)) }.value
                for try await token in session.tokens(after: tokens, maxNewTokens: 64) { written += "\(token) " }
            } catch {
                written += "\n\(error)"
            }
            writing = nil
        }
    }
}
