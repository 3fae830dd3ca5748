// tfq:begin header
// How the values of an app become a model's inputs, and its outputs become results. tfq fills in the marked parts.
// tfq:end header
import Foundation

/// The model's inputs and outputs, in the order in which the interpreter numbers them.
enum Model {
  static let inputs: [ModelInput] = [
    // tfq:begin inputs
    ModelInput("image", [1, 8, 8, 1], .int8, Quantization(scale: 0.0625, zeroPoint: -128), resize: true),
    // tfq:end inputs
  ]
  static let outputs: [ModelOutput] = [
    // tfq:begin outputs
    ModelOutput("scores", [1, 10], .int8, Quantization(scale: 0.00390625, zeroPoint: -128)),
    // tfq:end outputs
  ]
}

enum ModelError: Error {
  /// Values that do not fit an input: what was expected, and what came.
  case unexpectedValues(String)
}

enum DType {
  case float32, int8, uint8, int16, int32, int64, bool

  var byteCount: Int {
    switch self {
    case .int8, .uint8, .bool: return 1
    case .int16: return 2
    case .float32, .int32: return 4
    case .int64: return 8
    }
  }

  /// Returns whether values of the type include this number, without rounding.
  func canRepresent(_ value: Float) -> Bool {
    switch self {
    case .float32: return true
    case .int8: return Int8(exactly: value) != nil
    case .uint8: return UInt8(exactly: value) != nil
    case .int16: return Int16(exactly: value) != nil
    case .int32: return Int32(exactly: value) != nil
    case .int64: return Int64(exactly: value) != nil
    case .bool: return value == 0 || value == 1
    }
  }
}

/// The relation of real and quantized values: real = (quantized - zeroPoint) * scale.
struct Quantization {
  let scale: Float
  let zeroPoint: Int
}

/// An input of the model. `encode` applies its preprocessing in this order: resize images to the height and width in
/// `shape`; multiply by `scale` and add `offset`; subtract `mean` and divide by `std` (one for all channels, or one for
/// each); quantize.
struct ModelInput {
  let name: String
  let shape: [Int]
  let type: DType
  let quantization: Quantization?
  let resize: Bool
  let scale: Float
  let offset: Float
  let mean: [Float]
  let std: [Float]

  init(
    _ name: String, _ shape: [Int], _ type: DType, _ quantization: Quantization? = nil, resize: Bool = false,
    scale: Float = 1, offset: Float = 0, mean: [Float] = [0], std: [Float] = [1]
  ) {
    self.name = name
    self.shape = shape
    self.type = type
    self.quantization = quantization
    self.resize = resize
    self.scale = scale
    self.offset = offset
    self.mean = mean
    self.std = std
  }

  /// Returns the bytes for an image of any size, as rows of pixels with their channels (see `rgb`).
  func encode(_ pixels: [Float], height: Int, width: Int) throws -> Data {
    if resize {
      return try encode(
        resizeBilinear(pixels, height, width, channels: shape[3], newHeight: shape[1], newWidth: shape[2]))
    }
    guard height == shape[1] && width == shape[2] else {
      throw ModelError.unexpectedValues(
        "\(name): expected \(shape[1])x\(shape[2]) pixels, got \(height)x\(width)")
    }
    return try encode(pixels)
  }

  /// Returns the bytes for values in the shape of the input: samples, features, pixels of the right size.
  func encode(_ values: [Float]) throws -> Data {
    try checkCount(values.count)
    var data = Data(capacity: values.count * type.byteCount)
    for (place, value) in values.enumerated() {
      guard !value.isNaN else { throw ModelError.unexpectedValues("\(name): expected numbers, got NaN") }
      let real = (value * scale + offset - mean[place % mean.count]) / std[place % std.count]
      guard quantization != nil || type.canRepresent(real) else {
        throw ModelError.unexpectedValues("\(name): expected \(type) values, got \(real)")
      }
      append(real, type, quantization, to: &data)
    }
    return data
  }

  /// Returns the bytes for integers in the shape of the input: token numbers.
  func encode(_ values: [Int]) throws -> Data {
    guard type == .int32 || type == .int64 else { return try encode(values.map { Float($0) }) }
    try checkCount(values.count)
    var data = Data(capacity: values.count * type.byteCount)
    for value in values {
      if type == .int32 {
        guard let narrow = Int32(exactly: value) else {
          throw ModelError.unexpectedValues("\(name): expected int32 values, got \(value)")
        }
        appendBytes(of: narrow, to: &data)
      } else {
        appendBytes(of: Int64(value), to: &data)
      }
    }
    return data
  }

  private func checkCount(_ count: Int) throws {
    let expected = shape.reduce(1, *)
    guard count == expected else {
      throw ModelError.unexpectedValues("\(name): expected \(expected) values \(shape), got \(count)")
    }
  }
}

/// An output of the model.
struct ModelOutput {
  let name: String
  let shape: [Int]
  let type: DType
  let quantization: Quantization?

  init(_ name: String, _ shape: [Int], _ type: DType, _ quantization: Quantization? = nil) {
    self.name = name
    self.shape = shape
    self.type = type
    self.quantization = quantization
  }

  /// Returns the real values of the output's bytes.
  func decode(_ data: Data) -> [Float] {
    if type == .float32 {
      let bytes = [UInt8](data)
      return (0..<shape.reduce(1, *)).map { load(bytes, $0 * type.byteCount, Float.self) }
    }
    guard let quantization = quantization else { return integers(data).map { Float($0) } }
    return integers(data).map { Float($0 - quantization.zeroPoint) * quantization.scale }
  }

  /// Returns the integers of the output's bytes, such as class numbers, without dequantizing them.
  func integers(_ data: Data) -> [Int] {
    let bytes = [UInt8](data)
    return (0..<shape.reduce(1, *)).map { integer(bytes, $0 * type.byteCount) }
  }

  private func integer(_ bytes: [UInt8], _ start: Int) -> Int {
    switch type {
    case .int8: return Int(Int8(bitPattern: bytes[start]))
    case .int16: return Int(load(bytes, start, Int16.self))
    case .int32: return Int(load(bytes, start, Int32.self))
    case .int64: return Int(load(bytes, start, Int64.self))
    case .uint8, .bool, .float32: return Int(bytes[start])
    }
  }

  private func load<T>(_ bytes: [UInt8], _ start: Int, _: T.Type) -> T {
    bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: start, as: T.self) }
  }
}

/// A class of a classifier: its number, counted from 0, its line in labels.txt, and its score.
struct Category: Equatable {
  let index: Int
  let label: String
  let score: Float
}

/// Returns the `k` categories with the highest scores, best first; of equal scores, the lower index comes first.
func topCategories(_ scores: [Float], labels: [String], k: Int = 5) -> [Category] {
  scores.indices
    .sorted { scores[$0] != scores[$1] ? scores[$0] > scores[$1] : $0 < $1 }
    .prefix(k)
    .map { Category(index: $0, label: $0 < labels.count ? labels[$0] : String($0), score: scores[$0]) }
}

/// Returns red, green and blue (0 to 255) of pixels with four bytes each, red first: kCGImageAlphaNoneSkipLast.
func rgb(ofRGBX bytes: [UInt8]) -> [Float] {
  bytes.indices.filter { $0 % 4 != 3 }.map { Float(bytes[$0]) }
}

/// Returns images (rows, columns, channels; one or several in a row) in a new size.
///
/// Bilinear with half-pixel centers, without antialiasing, with repeated edge pixels: what tf.image.resize and tfq
/// compute. Core Graphics and vImage compute something else.
func resizeBilinear(
  _ pixels: [Float], _ height: Int, _ width: Int, channels: Int, newHeight: Int, newWidth: Int
) throws -> [Float] {
  let size = height * width * channels
  guard size > 0 && pixels.count % size == 0 else {
    throw ModelError.unexpectedValues(
      "expected images of \(height)x\(width)x\(channels) values, got \(pixels.count) values")
  }
  let rows = neighbors(height, newHeight)
  let columns = neighbors(width, newWidth)
  var resized: [Float] = []
  resized.reserveCapacity(pixels.count / size * newHeight * newWidth * channels)
  for start in stride(from: 0, to: pixels.count, by: size) {
    for row in rows {
      for column in columns {
        for channel in 0..<channels {
          func pixel(_ y: Int, _ x: Int) -> Float { pixels[start + (y * width + x) * channels + channel] }
          let top = mix(pixel(row.first, column.first), pixel(row.first, column.second), column.weight)
          let bottom = mix(pixel(row.second, column.first), pixel(row.second, column.second), column.weight)
          resized.append(mix(top, bottom, row.weight))
        }
      }
    }
  }
  return resized
}

/// Returns the two neighboring source pixels of each target pixel, and the weight of the second.
private func neighbors(_ source: Int, _ target: Int) -> [(first: Int, second: Int, weight: Float)] {
  if source == target { return (0..<target).map { ($0, $0, 0) } }
  let step = Float(Double(source) / Double(target))
  return (0..<target).map { index in
    let position = (Float(index) + 0.5) * step - 0.5
    let below = position.rounded(.down)
    return (max(Int(below), 0), min(Int(below) + 1, source - 1), position - below)
  }
}

private func mix(_ first: Float, _ second: Float, _ weight: Float) -> Float {
  first + (second - first) * weight
}

/// Appends a real value, quantized if there is a quantization: rounded half to even, with the zero point added,
/// saturated.
private func append(_ real: Float, _ type: DType, _ quantization: Quantization?, to data: inout Data) {
  var value = real
  if let quantization = quantization {
    value = (real * (1 / quantization.scale)).rounded(.toNearestOrEven) + Float(quantization.zeroPoint)
  }
  switch type {
  case .float32: appendBytes(of: value, to: &data)
  case .int8: appendBytes(of: Int8(max(-128, min(127, value))), to: &data)
  case .uint8: appendBytes(of: UInt8(max(0, min(255, value))), to: &data)
  case .int16: appendBytes(of: Int16(max(-32768, min(32767, value))), to: &data)
  case .int32: appendBytes(of: Int32(value), to: &data)
  case .int64: appendBytes(of: Int64(value), to: &data)
  case .bool: appendBytes(of: UInt8(value == 0 ? 0 : 1), to: &data)
  }
}

private func appendBytes<T>(of value: T, to data: inout Data) {
  withUnsafeBytes(of: value) { data.append(contentsOf: $0) }
}
