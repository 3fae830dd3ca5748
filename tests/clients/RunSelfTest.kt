// SPDX-License-Identifier: Apache-2.0
package com.example.model

import java.io.File

/** Runs the self-tests of a bundle without the model, for each folder: a copy of the bundle, with changed files. */
fun main(folders: Array<String>) {
    for (folder in folders) {
        val labels = File(folder, "labels.txt").takeIf { it.exists() }?.readLines().orEmpty()
        val failures = SelfTest.failures(labels) { File(folder, it).readBytes() }
        println("$folder: ${failures.joinToString("; ").ifEmpty { "passed" }}")
    }
    for (input in INPUTS) {
        val count = input.shape.reduce(Int::times)
        val wrong = listOf(FloatArray(count - 1), FloatArray(count) { Float.NaN })
        check(wrong.all { refuses { input.encode(it) } }) { "${input.name} accepts wrong values" }
        val needsIntegers = input.type != DType.FLOAT32 && input.quantization == null
        check(needsIntegers == refuses { input.encode(FloatArray(count) { 0.5f }) }) { "${input.name}: fractions" }
    }
    val images = FloatArray(2 * 6 * 5 * 3) { (it * 37 % 101).toFloat() }
    val second = images.copyOfRange(images.size / 2, images.size)
    val both = resizeBilinear(images, 6, 5, 3, 4, 7)
    check(resizeBilinear(second, 6, 5, 3, 4, 7).toList() == both.toList().takeLast(4 * 7 * 3)) { "several images" }
}

private fun refuses(block: () -> Unit): Boolean =
    try {
        block()
        false
    } catch (_: IllegalArgumentException) {
        true
    }
