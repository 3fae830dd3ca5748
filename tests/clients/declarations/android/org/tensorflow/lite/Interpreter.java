// SPDX-License-Identifier: Apache-2.0
package org.tensorflow.lite;

import java.nio.ByteBuffer;
import java.util.Map;

public final class Interpreter implements AutoCloseable {
    public static class Options {
        public native Options setNumThreads(int numThreads);
    }

    public Interpreter(ByteBuffer byteBuffer, Options options) {}

    public native void runForMultipleInputsOutputs(Object[] inputs, Map<Integer, Object> outputs);

    @Override
    public native void close();
}
