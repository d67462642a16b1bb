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
    // Text needs libortextensions.so of onnxruntime-extensions 0.15 or newer in src/main/jniLibs/arm64-v8a, or an AAR that
    // has it. Without it the app takes and shows token ids.
}
