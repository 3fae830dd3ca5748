// tfq:begin header
// A self-test on golden vectors.
// tfq:end header
import Foundation

/// A test of this code and of the model on the golden vectors: examples, and what the model computed for them in LiteRT
/// with XNNPACK when tfq wrote the bundle. In a unit test, with the bundle's folder as a folder reference:
///
///     let failures = try SelfTest.failures(labels: labels(), run: LiteRtModel().run) { path in
///       try Data(contentsOf: bundle.appendingPathComponent(path))
///     }
///     XCTAssertEqual(failures, [])
enum SelfTest {
  /// An input: the file with its values before preprocessing, their type and shape, and the file with its bytes.
  struct GoldenInput {
    let source: String
    let type: DType
    let shape: [Int]
    let file: String
  }

  /// An output: the files with its bytes and with its real values, the largest difference that is right (in steps of
  /// the output's scale if it is quantized), and the label of the best class.
  struct GoldenOutput {
    let file: String
    let decoded: String
    let tolerance: Float
    let best: String?
  }

  struct Example {
    let inputs: [GoldenInput]
    let outputs: [GoldenOutput]
  }

  static let examples: [Example] = [
    // tfq:begin examples
    Example(
      inputs: [
        GoldenInput(source: "golden/0_source.bin", type: .uint8, shape: [1, 8, 8, 1], file: "golden/0_input.bin"),
      ],
      outputs: [
        GoldenOutput(file: "golden/0_output.bin", decoded: "golden/0_decoded.bin", tolerance: 1, best: "three"),
      ]
    ),
    // tfq:end examples
  ]

  /// Returns a line for each difference to the golden vectors; none if all are reproduced.
  ///
  /// `run` is the model. Without it, only the preprocessing, the dequantization and the labels are tested. `read`
  /// returns the content of a file of the bundle.
  static func failures(
    labels: [String], run: (([Data]) throws -> [Data])? = nil, read: (String) throws -> Data
  ) throws -> [String] {
    var failures: [String] = []
    for (number, example) in examples.enumerated() {
      var inputs: [Data] = []
      for (input, golden) in zip(Model.inputs, example.inputs) {
        let data = try encode(input, golden, read)
        if data != (try read(golden.file)) {
          failures.append("golden vector \(number): input \(input.name) differs from \(golden.file)")
        }
        inputs.append(data)
      }
      let outputs = try run?(inputs) ?? example.outputs.map { try read($0.file) }
      for (index, output) in Model.outputs.enumerated() {
        let golden = example.outputs[index]
        let expected = ModelOutput(output.name, output.shape, .float32).decode(try read(golden.decoded))
        let problems = differences(output, golden, output.decode(outputs[index]), expected, labels)
        failures += problems.map { "golden vector \(number): output \(output.name): \($0)" }
      }
    }
    return failures
  }

  private static func encode(
    _ input: ModelInput, _ golden: GoldenInput, _ read: (String) throws -> Data
  ) throws -> Data {
    let source = try read(golden.source)
    let reader = ModelOutput(input.name, golden.shape, golden.type)
    if golden.type == .int32 || golden.type == .int64 { return try input.encode(reader.integers(source)) }
    let values = reader.decode(source)
    return input.resize
      ? try input.encode(values, height: golden.shape[1], width: golden.shape[2]) : try input.encode(values)
  }

  private static func differences(
    _ output: ModelOutput, _ golden: GoldenOutput, _ values: [Float], _ expected: [Float], _ labels: [String]
  ) -> [String] {
    let step = output.quantization?.scale ?? 1
    let steps = zip(values, expected).map { $0 == $1 ? 0 : abs($0 - $1) / step }
    var failures: [String] = []
    // Half a percent of a step is the rounding of float32. NaN is a difference, too.
    if !steps.allSatisfy({ $0 <= golden.tolerance + 0.005 }) {
      failures.append("differs by up to \(steps.max() ?? 0), more than \(golden.tolerance)")
    }
    if let best = golden.best, let top = topCategories(Array(values.prefix(labels.count)), labels: labels).first {
      // Scores that may differ by the tolerance may also change places.
      let score = labels.firstIndex(of: best).map { values[$0] } ?? .nan
      let isTie = golden.tolerance > 0 && top.score - score <= 2 * golden.tolerance * step
      if top.label != best && !isTie {
        failures.append("expected \(best), got \(top.label)")
      }
    }
    return failures
  }
}
