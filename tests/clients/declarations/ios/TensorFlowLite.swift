// SPDX-License-Identifier: Apache-2.0
import Foundation

public final class Interpreter {
  public struct Options {
    public init() {}
    public var threadCount: Int?
  }

  public init(modelPath: String, options: Options? = nil) throws {}

  public func allocateTensors() throws {}

  @discardableResult
  public func copy(_ data: Data, toInputAt index: Int) throws -> Tensor { fatalError("a declaration") }

  public func invoke() throws {}

  public func output(at index: Int) throws -> Tensor { fatalError("a declaration") }
}

public struct Tensor {
  public let data: Data
}
