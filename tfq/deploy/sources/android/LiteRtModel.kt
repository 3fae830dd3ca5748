// tfq:begin header
// A model in LiteRT's interpreter on Android.
// tfq:end header
package com.example.model

import android.content.Context
import java.io.FileInputStream
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import org.tensorflow.lite.Interpreter

/**
 * The asset model.tflite in LiteRT's interpreter, which uses XNNPACK. One thread at a time may use an object.
 *
 *     val model = LiteRtModel(context)
 *     val input = INPUTS[0].encode(rgbOf(argb), bitmap.height, bitmap.width)
 *     val scores = OUTPUTS[0].decode(model.run(listOf(input))[0])
 *     val best = topCategories(scores, labelsOf(context)).first()
 */
class LiteRtModel(context: Context, numThreads: Int = 2) : AutoCloseable {
    private val interpreter = Interpreter(mapModel(context), Interpreter.Options().setNumThreads(numThreads))

    /** Return one buffer for each of OUTPUTS, given one for each of INPUTS. */
    fun run(inputs: List<ByteBuffer>): List<ByteBuffer> {
        require(inputs.size == INPUTS.size) { "expected ${INPUTS.size} inputs, got ${inputs.size}" }
        val outputs = OUTPUTS.map { it.newBuffer() }
        val numbered = outputs.indices.associateWith { outputs[it] as Any }
        interpreter.runForMultipleInputsOutputs(inputs.toTypedArray<Any>(), numbered)
        return outputs
    }

    override fun close() = interpreter.close()
}

/** Return the lines of the asset labels.txt. */
fun labelsOf(context: Context): List<String> = context.assets.open("labels.txt").bufferedReader().use { it.readLines() }

/** Map the asset into memory. It must be stored without compression: see the README. */
private fun mapModel(context: Context): ByteBuffer =
    context.assets.openFd("model.tflite").use { asset ->
        FileInputStream(asset.fileDescriptor).use {
            it.channel.map(FileChannel.MapMode.READ_ONLY, asset.startOffset, asset.declaredLength)
        }
    }
