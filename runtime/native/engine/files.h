// The few questions that the runtime asks a file system. Paths are UTF-8.
#pragma once

#include <string>
#include <vector>

#include "engine/status.h"

namespace edgeslim {

// Bytes of the file at `path`, -1 where there is none.
int64_t file_bytes(const std::string& path);
bool is_folder(const std::string& path);
// Whether `path` names a link to something outside of `folder`, or to nothing. Windows' links are not looked at.
bool link_leaves(const std::string& folder, const std::string& path);
// Names in a folder, sorted.
std::vector<std::string> names_in(const std::string& folder);
// Bytes of all files below a folder. Links to folders are not followed.
int64_t folder_bytes(const std::string& folder);
Status read_file(const std::string& path, std::size_t most, std::string* text);
// What a small file of the kernel's holds, empty where it cannot be read.
std::string read_line(const std::string& path);

}  // namespace edgeslim
