pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}
dependencyResolutionManagement {
    repositories {
        google()
        mavenCentral()
    }
}
rootProject.name = "edgeslim"
include(":edgeslim", ":example")
project(":example").projectDir = file("../../examples/android/app")
