// SPDX-License-Identifier: Apache-2.0
// Runs the self-test of a bundle without the model, for each folder: a bundle, or a copy with changed files.
import Foundation

for folder in CommandLine.arguments.dropFirst() {
  let text = (try? String(contentsOfFile: folder + "/labels.txt", encoding: .utf8)) ?? ""
  let labels = text.split(separator: "\n").map(String.init)
  let failures = try SelfTest.failures(labels: labels) { try Data(contentsOf: URL(fileURLWithPath: folder + "/" + $0)) }
  print("\(folder): \(failures.isEmpty ? "passed" : failures.joined(separator: "; "))")
}
