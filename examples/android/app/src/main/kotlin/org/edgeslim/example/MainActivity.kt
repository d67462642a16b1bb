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
import java.util.concurrent.Executors

/**
 * Streams tokens from a bundle in the app's own folder. Weights are mapped, so a bundle lies in a folder, not in the APK:
 * `adb push out/demo/dense/. /sdcard/Android/data/org.edgeslim.example/files/bundle`.
 */
class MainActivity : Activity() {
    private val worker = Executors.newSingleThreadExecutor()
    @Volatile private var session: Session? = null

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        val prompt = EditText(this).apply { setText("5 60 7 200") }
        val written = TextView(this)
        val write = Button(this).apply { text = "Write" }
        val stop = Button(this).apply { text = "Stop" }
        write.setOnClickListener {
            written.text = ""
            val ids = prompt.text.split(" ").mapNotNull(String::toIntOrNull).toIntArray()
            worker.execute { write(ids) { piece -> runOnUiThread { written.append(piece) } } }
        }
        stop.setOnClickListener { session?.cancel() }
        setContentView(LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            listOf(prompt, write, stop, written).forEach(::addView)
        })
    }

    private fun write(ids: IntArray, show: (String) -> Unit) {
        val folder = getExternalFilesDir("bundle")!!.path
        try {
            Model.load(folder).use { model ->
                model.open().use { opened ->
                    session = opened
                    val end = opened.generate(ids, 64, Sampling.GREEDY) { token -> show("$token "); true }
                    show("($end)")
                }
            }
        } catch (fault: EdgeslimException) {
            show("${fault.code()}: ${fault.message}")
        } finally {
            session = null
        }
    }

    override fun onDestroy() {
        session?.cancel()
        worker.shutdown()
        super.onDestroy()
    }
}
