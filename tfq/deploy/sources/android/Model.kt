// tfq:begin header
// How the values of an app become a model's inputs, and its outputs become results. tfq fills in the marked parts.
// tfq:end header
package com.example.model

import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.floor
import kotlin.math.round

/** The model's inputs, in the order in which the interpreter numbers them. */
val INPUTS = listOf(
    // tfq:begin inputs
    Input("image", listOf(1, 8, 8, 1), DType.INT8, Quantization(0.0625f, -128), resize = true),
    // tfq:end inputs
)

/** The model's outputs, in the order in which the interpreter numbers them. */
val OUTPUTS = listOf(
    // tfq:begin outputs
    Output("scores", listOf(1, 10), DType.INT8, Quantization(0.00390625f, -128)),
    // tfq:end outputs
)

/** A type of values: its bytes, and the smallest and largest float32 that it can represent. */
enum class DType(val bytes: Int, val lowest: Float, val highest: Float) {
    FLOAT32(4, -Float.MAX_VALUE, Float.MAX_VALUE),
    INT8(1, -128f, 127f),
    UINT8(1, 0f, 255f),
    INT16(2, -32768f, 32767f),
    INT32(4, -2147483648f, 2147483520f),
    INT64(8, -9.223372E18f, 9.223371E18f),
    BOOL(1, 0f, 1f),
}

/** The relation of real and quantized values: real = (quantized - zeroPoint) * scale. */
class Quantization(val scale: Float, val zeroPoint: Int)

/**
 * An input of the model. `encode` applies its preprocessing in this order: resize images to the height and width in
 * `shape`; multiply by `scale` and add `offset`; subtract `mean` and divide by `std` (one for all channels, or one for
 * each); quantize.
 */
class Input(
    val name: String,
    val shape: List<Int>,
    val type: DType,
    val quantization: Quantization? = null,
    val resize: Boolean = false,
    val scale: Float = 1f,
    val offset: Float = 0f,
    val mean: List<Float> = listOf(0f),
    val std: List<Float> = listOf(1f),
) {
    /** Return the bytes for an image of any size, as rows of pixels with their channels (see `rgbOf`). */
    fun encode(pixels: FloatArray, height: Int, width: Int): ByteBuffer {
        if (resize) return encode(resizeBilinear(pixels, height, width, shape[3], shape[1], shape[2]))
        require(height == shape[1] && width == shape[2]) {
            "$name: expected ${shape[1]}x${shape[2]} pixels, got ${height}x$width"
        }
        return encode(pixels)
    }

    /** Return the bytes for values in the shape of the input: samples, features, pixels of the right size. */
    fun encode(values: FloatArray): ByteBuffer {
        val buffer = bufferFor(values.size)
        for ((place, value) in values.withIndex()) {
            val real = (value * scale + offset - mean[place % mean.size]) / std[place % std.size]
            buffer.putReal(type, real, quantization)
        }
        return buffer.apply { rewind() }
    }

    /** Return the bytes for integers in the shape of the input: token numbers. */
    fun encode(values: IntArray): ByteBuffer {
        if (type != DType.INT32 && type != DType.INT64) return encode(FloatArray(values.size) { values[it].toFloat() })
        val buffer = bufferFor(values.size)
        for (value in values) if (type == DType.INT32) buffer.putInt(value) else buffer.putLong(value.toLong())
        return buffer.apply { rewind() }
    }

    private fun bufferFor(count: Int): ByteBuffer {
        val expected = sizeOf(shape)
        require(count == expected) { "$name: expected $expected values (${shape.joinToString("x")}), got $count" }
        return directBuffer(count * type.bytes)
    }
}

/** An output of the model. */
class Output(val name: String, val shape: List<Int>, val type: DType, val quantization: Quantization? = null) {
    /** Return a buffer that the interpreter can write the output into. */
    fun newBuffer(): ByteBuffer = directBuffer(sizeOf(shape) * type.bytes)

    /** Return the real values of the output's bytes. */
    fun decode(buffer: ByteBuffer): FloatArray {
        buffer.rewind()
        return FloatArray(sizeOf(shape)) { buffer.nextReal(type, quantization) }
    }
}

/** A class of a classifier: its number, counted from 0, its line in labels.txt, and its score. */
data class Category(val index: Int, val label: String, val score: Float)

/** Return the `k` categories with the highest scores, best first; of equal scores, the lower index comes first. */
fun topCategories(scores: FloatArray, labels: List<String>, k: Int = 5): List<Category> =
    scores.indices
        .sortedByDescending { scores[it] }
        .take(k)
        .map { Category(it, labels.getOrElse(it) { index -> "$index" }, scores[it]) }

/** Return red, green and blue (0 to 255) of each ARGB pixel; Android's Bitmap.getPixels returns such pixels. */
fun rgbOf(argb: IntArray): FloatArray =
    FloatArray(argb.size * 3) { (argb[it / 3] shr (16 - 8 * (it % 3)) and 0xff).toFloat() }

/**
 * Return images (rows, columns, channels; one or several in a row) in a new size.
 *
 * Bilinear with half-pixel centers, without antialiasing, with repeated edge pixels: what tf.image.resize and tfq
 * compute. Android's Bitmap.createScaledBitmap computes something else.
 */
fun resizeBilinear(
    pixels: FloatArray,
    height: Int,
    width: Int,
    channels: Int,
    newHeight: Int,
    newWidth: Int,
): FloatArray {
    val size = height * width * channels
    require(size > 0 && pixels.size % size == 0) {
        "expected images of ${height}x${width}x$channels values, got ${pixels.size} values"
    }
    val rows = neighbors(height, newHeight)
    val columns = neighbors(width, newWidth)
    val resized = FloatArray(pixels.size / size * newHeight * newWidth * channels)
    var place = 0
    for (start in pixels.indices step size) {
        for (row in rows) for (column in columns) for (channel in 0 until channels) {
            fun pixel(y: Int, x: Int) = pixels[start + (y * width + x) * channels + channel]
            val top = mix(pixel(row.first, column.first), pixel(row.first, column.second), column.weight)
            val bottom = mix(pixel(row.second, column.first), pixel(row.second, column.second), column.weight)
            resized[place++] = mix(top, bottom, row.weight)
        }
    }
    return resized
}

/** Two neighboring source pixels, and the weight of the second. */
private class Neighbors(val first: Int, val second: Int, val weight: Float)

private fun neighbors(source: Int, target: Int): List<Neighbors> {
    if (source == target) return List(target) { Neighbors(it, it, 0f) }
    val step = (source.toDouble() / target).toFloat()
    return List(target) {
        val position = (it + 0.5f) * step - 0.5f
        val below = floor(position)
        Neighbors(maxOf(below.toInt(), 0), minOf(below.toInt() + 1, source - 1), position - below)
    }
}

private fun mix(first: Float, second: Float, weight: Float): Float = first + (second - first) * weight

private fun sizeOf(shape: List<Int>): Int = shape.fold(1, Int::times)

private fun directBuffer(bytes: Int): ByteBuffer = ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder())

/** Write a real value, quantized if there is a quantization: round half to even, add the zero point, saturate. */
private fun ByteBuffer.putReal(type: DType, real: Float, quantization: Quantization?) {
    require(!real.isNaN()) { "expected numbers, got NaN" }
    var value = real
    if (quantization != null) {
        value = round(real * (1f / quantization.scale)) + quantization.zeroPoint
        value = value.coerceIn(type.lowest, type.highest)
    } else if (type != DType.FLOAT32) {
        require(value in type.lowest..type.highest && value == floor(value)) { "expected $type values, got $value" }
    }
    when (type) {
        DType.FLOAT32 -> putFloat(value)
        DType.INT8, DType.UINT8 -> put(value.toInt().toByte())
        DType.INT16 -> putShort(value.toInt().toShort())
        DType.INT32 -> putInt(value.toInt())
        DType.INT64 -> putLong(value.toLong())
        DType.BOOL -> put(if (value != 0f) 1 else 0)
    }
}

private fun ByteBuffer.nextReal(type: DType, quantization: Quantization?): Float {
    val value = when (type) {
        DType.FLOAT32 -> return getFloat()
        DType.INT8, DType.BOOL -> get().toLong()
        DType.UINT8 -> get().toLong() and 0xff
        DType.INT16 -> getShort().toLong()
        DType.INT32 -> getInt().toLong()
        DType.INT64 -> getLong()
    }
    return if (quantization == null) value.toFloat() else (value - quantization.zeroPoint) * quantization.scale
}
