package org.edgeslim.example

import android.app.Activity
import android.os.Bundle
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.TextView
import org.edgeslim.EdgeslimException
import org.edgeslim.Model
import org.edgeslim.Sampling
import org.edgeslim.Session
import org.edgeslim.Tokenizer
import java.util.concurrent.Executors

/**
 * Streams text from a bundle in the app's own folder; without onnxruntime-extensions the prompt and the answer are token
 * ids. Weights are mapped, so a bundle lies in a folder, not in the APK:
 * `adb push out/demo/dense/. /sdcard/Android/data/org.edgeslim.example/files/bundle`.
 */
class MainActivity : Activity() {
    private val worker = Executors.newSingleThreadExecutor()
    @Volatile private var session: Session? = null

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        val prompt = EditText(this).apply { setText("Once upon a time") }
        val written = TextView(this)
        val write = Button(this).apply { text = "Write" }
        val stop = Button(this).apply { text = "Stop" }
        write.setOnClickListener {
            written.text = ""
            val text = prompt.text.toString()
            worker.execute { write(text) { piece -> runOnUiThread { written.append(piece) } } }
        }
        stop.setOnClickListener { session?.cancel() }
        setContentView(LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            listOf(prompt, write, stop, written).forEach(::addView)
        })
    }

    private fun write(prompt: String, show: (String) -> Unit) {
        val folder = getExternalFilesDir("bundle")!!.path
        val tokenizer = try { Tokenizer.open(folder) } catch (absent: EdgeslimException) { null }
        val decoder = tokenizer?.decoder()
        try {
            Model.load(folder).use { model ->
                model.open().use { opened ->
                    session = opened
                    val ids = tokenizer?.encode(prompt) ?: prompt.split(" ").mapNotNull(String::toIntOrNull).toIntArray()
                    val end = opened.generate(ids, 64, Sampling.GREEDY) { token ->
                        show(decoder?.push(token) ?: "$token ")
                        true
                    }
                    show(" ($end)")
                }
            }
        } catch (fault: EdgeslimException) {
            show("${fault.code()}: ${fault.message}")
        } finally {
            session = null
            decoder?.close()
            tokenizer?.close()
        }
    }

    override fun onDestroy() {
        session?.cancel()
        worker.shutdown()
        super.onDestroy()
    }
}
