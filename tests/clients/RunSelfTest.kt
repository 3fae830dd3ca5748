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
}
