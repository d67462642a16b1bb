// What a tokenizer.json must hold before onnxruntime-extensions may read it. They take members and entries without asking
// whether there are any, and a file that lacks one would end the program or never end.
#pragma once

#include <string>

#include "engine/json.h"
#include "engine/status.h"

namespace edgeslim {

// Sets `*type` to the class of transformers that makes the extensions read `file` as what it is. `path` is for messages.
Status check_tokenizer(const Json& file, const std::string& path, const char** type);

}  // namespace edgeslim
