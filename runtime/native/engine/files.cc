#include "engine/files.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

#if defined(_WIN32)
#include <windows.h>
#define stat _stat64
#define S_ISDIR(mode) (((mode) & _S_IFDIR) != 0)
#define S_ISREG(mode) (((mode) & _S_IFREG) != 0)
#else
#include <dirent.h>
#endif

namespace edgeslim {
namespace {

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Close>;

}  // namespace

int64_t file_bytes(const std::string& path) {
  struct stat found;
  if (stat(path.c_str(), &found) != 0 || !S_ISREG(found.st_mode)) return -1;
  return int64_t(found.st_size);
}

bool is_folder(const std::string& path) {
  struct stat found;
  return stat(path.c_str(), &found) == 0 && S_ISDIR(found.st_mode);
}

#if defined(_WIN32)
bool link_leaves(const std::string&, const std::string&) { return false; }
#else
bool link_leaves(const std::string& folder, const std::string& path) {
  struct Free {
    void operator()(char* text) const { std::free(text); }
  };
  using Resolved = std::unique_ptr<char, Free>;
  struct stat found;
  if (lstat(path.c_str(), &found) != 0 || !S_ISLNK(found.st_mode)) return false;
  const Resolved root(realpath(folder.c_str(), nullptr)), target(realpath(path.c_str(), nullptr));
  return !root || !target || std::string(target.get()).rfind(std::string(root.get()) + "/", 0) != 0;
}
#endif

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
#if defined(_WIN32)
  WIN32_FIND_DATAA entry;
  const HANDLE found = FindFirstFileA((folder + "\\*").c_str(), &entry);
  if (found != INVALID_HANDLE_VALUE) {
    do names.emplace_back(entry.cFileName);
    while (FindNextFileA(found, &entry));
    FindClose(found);
  }
#else
  if (DIR* opened = opendir(folder.c_str())) {
    while (const dirent* entry = readdir(opened)) names.emplace_back(entry->d_name);
    closedir(opened);
  }
#endif
  names.erase(std::remove_if(names.begin(), names.end(), [](const std::string& n) { return n == "." || n == ".."; }),
              names.end());
  std::sort(names.begin(), names.end());
  return names;
}

int64_t folder_bytes(const std::string& folder) {
  int64_t sum = 0;
  for (const std::string& name : names_in(folder)) {
    const std::string path = folder + "/" + name;
#if !defined(_WIN32)
    struct stat found;
    if (lstat(path.c_str(), &found) == 0 && S_ISLNK(found.st_mode) && is_folder(path)) continue;
#endif
    sum += is_folder(path) ? folder_bytes(path) : std::max<int64_t>(0, file_bytes(path));
  }
  return sum;
}

Status read_file(const std::string& path, std::size_t most, std::string* text) {
  const File file(std::fopen(path.c_str(), "rb"));
  if (!file) return failure(EDGESLIM_BAD_BUNDLE, "%s: cannot be read: %s", path.c_str(), std::strerror(errno));
  char piece[16384];
  text->clear();
  while (const std::size_t got = std::fread(piece, 1, sizeof piece, file.get())) {
    text->append(piece, got);
    if (text->size() > most)
      return failure(EDGESLIM_BAD_BUNDLE, "%s: has more than %zu bytes", path.c_str(), most);
  }
  if (std::ferror(file.get())) return failure(EDGESLIM_BAD_BUNDLE, "%s: cannot be read to its end", path.c_str());
  return {};
}

std::string read_line(const std::string& path) {
  char line[256] = {0};
  const File file(std::fopen(path.c_str(), "rb"));
  if (!file || !std::fgets(line, sizeof line, file.get())) return {};
  line[std::strcspn(line, "\r\n")] = 0;
  return line;
}

}  // namespace edgeslim
