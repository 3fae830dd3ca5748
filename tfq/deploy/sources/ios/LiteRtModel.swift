// tfq:begin header
// A model in LiteRT's interpreter on iOS.
// tfq:end header
import Foundation
import TensorFlowLite

/// The app's resource model.tflite in LiteRT's interpreter, which uses XNNPACK. One thread at a time may use an object.
///
///     let model = try LiteRtModel()
///     let input = try Model.inputs[0].encode(rgb(ofRGBX: bytes), height: height, width: width)
///     let scores = Model.outputs[0].decode(try model.run([input])[0])
///     let best = topCategories(scores, labels: try labels()).first
final class LiteRtModel {
  private let interpreter: Interpreter

  init(path: String? = Bundle.main.path(forResource: "model", ofType: "tflite"), threadCount: Int = 2) throws {
    guard let path = path else { throw CocoaError(.fileNoSuchFile) }
    var options = Interpreter.Options()
    options.threadCount = threadCount
    interpreter = try Interpreter(modelPath: path, options: options)
    try interpreter.allocateTensors()
  }

  /// Returns the bytes of each of Model.outputs, given those of each of Model.inputs.
  func run(_ inputs: [Data]) throws -> [Data] {
    for (index, data) in inputs.enumerated() {
      try interpreter.copy(data, toInputAt: index)
    }
    try interpreter.invoke()
    return try Model.outputs.indices.map { try interpreter.output(at: $0).data }
  }
}

/// Returns the lines of the app's resource labels.txt.
func labels() throws -> [String] {
  guard let url = Bundle.main.url(forResource: "labels", withExtension: "txt") else {
    throw CocoaError(.fileNoSuchFile)
  }
  let text = try String(contentsOf: url, encoding: .utf8)
  return text.split(separator: "\n").map(String.init)
}
