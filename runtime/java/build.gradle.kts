// Not built by its authors: no Android SDK was at hand. The Java sources are compiled and tested on a JDK (`make java`).
plugins {
    id("com.android.library") version "8.7.3" apply false
    id("com.android.application") version "8.7.3" apply false
    id("org.jetbrains.kotlin.android") version "2.0.21" apply false
}
