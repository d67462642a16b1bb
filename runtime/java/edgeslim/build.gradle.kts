// The binding as an AAR: Java classes, libedgeslim_jni.so and libedgeslim.so. ONNX Runtime comes as its own AAR, whose
// library the runtime loads while it runs.
plugins {
    id("com.android.library")
}

android {
    namespace = "org.edgeslim"
    compileSdk = 35
    defaultConfig {
        minSdk = 24
        consumerProguardFiles("consumer-rules.pro")
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
        externalNativeBuild {
            cmake {
                arguments += listOf("-DANDROID_STL=c++_static", "-DEDGESLIM_BENCH=OFF")
                targets += listOf("edgeslim", "edgeslim_jni")
            }
        }
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_11
        targetCompatibility = JavaVersion.VERSION_11
    }
    externalNativeBuild { cmake { path = file("../../native/CMakeLists.txt") } }
}

dependencies {
    api("com.microsoft.onnxruntime:onnxruntime-android:1.22.0")
}
