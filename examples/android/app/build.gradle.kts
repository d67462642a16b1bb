plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "org.edgeslim.example"
    compileSdk = 35
    defaultConfig {
        applicationId = "org.edgeslim.example"
        minSdk = 24
        targetSdk = 35
        versionCode = 1
        versionName = "1"
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_11
        targetCompatibility = JavaVersion.VERSION_11
    }
    kotlinOptions { jvmTarget = "11" }
}

dependencies {
    implementation(project(":edgeslim"))
    // Text: libortextensions.so with the functions Ortx… of 0.15. Without it the app takes token ids.
    runtimeOnly("com.microsoft.onnxruntime:onnxruntime-extensions-android:0.15.0")
}
