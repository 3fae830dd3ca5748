// tfq:begin header
// A self-test on golden vectors.
// tfq:end header
package com.example.model

import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.abs

/**
 * A test of this code and of the model on the golden vectors: examples, and what the model computed for them in LiteRT
 * with XNNPACK when tfq wrote the bundle. In an instrumented test, with the bundle's folder golden/ as assets:
 *
 *     val model = LiteRtModel(context)
 *     val failures = SelfTest.failures(labelsOf(context), model::run) { context.assets.open(it).readBytes() }
 *     assertEquals(emptyList<String>(), failures)
 */
object SelfTest {
    /** An input: the file with its values before preprocessing, their type and shape, and the file with its bytes. */
    class GoldenInput(val source: String, val type: DType, val shape: List<Int>, val file: String)

    /**
     * An output: the files with its bytes and with its real values, the largest difference that is right (in steps of
     * the output's scale if it is quantized), and the label of the best class.
     */
    class GoldenOutput(val file: String, val decoded: String, val tolerance: Float, val best: String? = null)

    class Example(val inputs: List<GoldenInput>, val outputs: List<GoldenOutput>)

    val EXAMPLES = listOf(
        // tfq:begin examples
        Example(
            listOf(GoldenInput("golden/0_source.bin", DType.UINT8, listOf(1, 8, 8, 1), "golden/0_input.bin")),
            listOf(GoldenOutput("golden/0_output.bin", "golden/0_decoded.bin", 1f, best = "three")),
        ),
        // tfq:end examples
    )

    /**
     * Return a line for each difference to the golden vectors; none if all are reproduced.
     *
     * `run` is the model. Without it, only the preprocessing, the dequantization and the labels are tested. `read`
     * returns the content of a file of the bundle.
     */
    fun failures(
        labels: List<String>,
        run: ((List<ByteBuffer>) -> List<ByteBuffer>)? = null,
        read: (String) -> ByteArray,
    ): List<String> = EXAMPLES.flatMapIndexed { number, example ->
        val failures = mutableListOf<String>()
        val inputs = example.inputs.zip(INPUTS) { golden, input ->
            encode(input, golden, read).also {
                if (it != bytesOf(read(golden.file))) failures += "input ${input.name} differs from ${golden.file}"
            }
        }
        val outputs = run?.invoke(inputs) ?: example.outputs.map { bytesOf(read(it.file)) }
        for ((index, golden) in example.outputs.withIndex()) {
            failures += differences(OUTPUTS[index], golden, outputs[index], labels, read)
        }
        failures.map { "golden vector $number: $it" }
    }

    private fun encode(input: Input, golden: GoldenInput, read: (String) -> ByteArray): ByteBuffer {
        val source = bytesOf(read(golden.source))
        val count = golden.shape.fold(1, Int::times)
        return when {
            golden.type == DType.INT32 -> input.encode(IntArray(count) { source.getInt() })
            golden.type == DType.INT64 -> input.encode(IntArray(count) { source.getLong().toInt() })
            else -> {
                val values = Output(input.name, golden.shape, golden.type).decode(source)
                if (input.resize) input.encode(values, golden.shape[1], golden.shape[2]) else input.encode(values)
            }
        }
    }

    private fun differences(
        output: Output,
        golden: GoldenOutput,
        buffer: ByteBuffer,
        labels: List<String>,
        read: (String) -> ByteArray,
    ): List<String> {
        val values = output.decode(buffer)
        val expected = Output(output.name, output.shape, DType.FLOAT32).decode(bytesOf(read(golden.decoded)))
        val step = output.quantization?.scale ?: 1f
        val largest = values.indices.maxOf { if (values[it] == expected[it]) 0f else abs(values[it] - expected[it]) } / step
        val failures = mutableListOf<String>()
        // Half a percent of a step is the rounding of float32.
        if (!(largest <= golden.tolerance + 0.005f)) {
            failures += "output ${output.name} differs by $largest, more than ${golden.tolerance}"
        }
        if (golden.best != null) {
            val best = topCategories(values.copyOf(labels.size), labels, 1).single()
            // Scores that may differ by the tolerance may also change places.
            val score = values.getOrNull(labels.indexOf(golden.best)) ?: Float.NaN
            val isTie = golden.tolerance > 0 && best.score - score <= 2 * golden.tolerance * step
            if (best.label != golden.best && !isTie) {
                failures += "output ${output.name}: expected ${golden.best}, got $best"
            }
        }
        return failures
    }

    private fun bytesOf(content: ByteArray): ByteBuffer = ByteBuffer.wrap(content).order(ByteOrder.LITTLE_ENDIAN)
}
