// What libcurl itself moves: the bar for s3:// (part_object_store.py). Objects in parts, several at once, an easy
// handle a thread, kept-alive connections, without signatures and checksums.
//
// raw_curl URL OBJECTS OBJECT_BYTES PART_BYTES THREADS: for each line "up" or "down" on standard input does that, and
// prints {"seconds": S, "cpu": S, "memory": BYTES, "right": true}.
#include <curl/curl.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

struct Exchange {
  const char* from = nullptr;  // of the body
  std::size_t left = 0;
  char* to = nullptr;  // of the answer; null: into `text`
  std::size_t room = 0;
  std::string text;
  std::string etag;
};

std::size_t on_read(char* out, std::size_t size, std::size_t count, void* data) {
  auto& exchange = *static_cast<Exchange*>(data);
  const std::size_t bytes = std::min(size * count, exchange.left);
  std::memcpy(out, exchange.from, bytes);
  exchange.from += bytes;
  exchange.left -= bytes;
  return bytes;
}

std::size_t on_write(char* in, std::size_t size, std::size_t count, void* data) {
  auto& exchange = *static_cast<Exchange*>(data);
  const std::size_t bytes = size * count;
  if (exchange.to == nullptr) {
    exchange.text.append(in, bytes);
    return bytes;
  }
  if (bytes > exchange.room) return 0;
  std::memcpy(exchange.to, in, bytes);
  exchange.to += bytes;
  exchange.room -= bytes;
  return bytes;
}

std::size_t on_header(char* line, std::size_t size, std::size_t count, void* data) {
  const std::string text(line, size * count);
  if (text.starts_with("ETag: "))
    static_cast<Exchange*>(data)->etag = text.substr(6, text.find_last_not_of("\r\n") - 5);
  return size * count;
}

struct Easy {
  CURL* handle = curl_easy_init();
  ~Easy() { curl_easy_cleanup(handle); }
};

void perform(CURL* easy, const std::string& method, const std::string& url, Exchange& exchange,
             const std::string& range = "") {
  curl_easy_reset(easy);
  curl_slist* const headers = curl_slist_append(nullptr, "Expect:");
  curl_easy_setopt(easy, CURLOPT_URL, url.c_str());
  curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
  curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, 512L << 10);
  curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, &on_write);
  curl_easy_setopt(easy, CURLOPT_WRITEDATA, &exchange);
  curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, &on_header);
  curl_easy_setopt(easy, CURLOPT_HEADERDATA, &exchange);
  if (method != "GET") {
    curl_easy_setopt(easy, CURLOPT_UPLOAD, 1L);
    curl_easy_setopt(easy, CURLOPT_UPLOAD_BUFFERSIZE, 1L << 20);
    curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, method.c_str());
    curl_easy_setopt(easy, CURLOPT_READFUNCTION, &on_read);
    curl_easy_setopt(easy, CURLOPT_READDATA, &exchange);
    curl_easy_setopt(easy, CURLOPT_INFILESIZE_LARGE, static_cast<curl_off_t>(exchange.left));
  }
  if (!range.empty()) curl_easy_setopt(easy, CURLOPT_RANGE, range.c_str());
  const CURLcode result = curl_easy_perform(easy);
  curl_slist_free_all(headers);
  long status = 0;
  curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
  if (result != CURLE_OK || status / 100 != 2) {
    throw std::runtime_error(method + " " + url + ": " + curl_easy_strerror(result) + ", status " +
                             std::to_string(status) + " " + exchange.text);
  }
}

struct Job {
  std::string url;
  std::size_t objects, object_bytes, part_bytes, threads;
  std::vector<char> memory = std::vector<char>(objects * object_bytes);

  [[nodiscard]] std::size_t parts() const { return (object_bytes + part_bytes - 1) / part_bytes; }
  [[nodiscard]] std::string url_of(std::size_t object) const { return url + "/raw/" + std::to_string(object); }

  template <typename Work>
  void in_parallel(std::size_t count, Work work) const {
    std::atomic<std::size_t> next = 0;
    std::vector<std::jthread> pool;
    for (std::size_t t = 0; t < std::min(threads, count); ++t) {
      pool.emplace_back([&] {
        const Easy easy;
        for (std::size_t i = next++; i < count; i = next++) work(easy.handle, i);
      });
    }
  }

  void up() {
    std::vector<std::string> ids(objects);
    std::vector<std::vector<std::string>> tags(objects, std::vector<std::string>(parts()));
    in_parallel(objects, [&](CURL* easy, std::size_t i) {
      Exchange start;
      perform(easy, "POST", url_of(i) + "?uploads", start);
      const auto begin = start.text.find("<UploadId>") + 10;
      char* const escaped =
          curl_easy_escape(easy, start.text.substr(begin, start.text.find("</UploadId>") - begin).c_str(), 0);
      ids[i] = escaped;
      curl_free(escaped);
    });
    in_parallel(objects * parts(), [&](CURL* easy, std::size_t i) {
      const std::size_t object = i / parts();
      const std::size_t part = i % parts();
      Exchange put;
      put.from = memory.data() + object * object_bytes + part * part_bytes;
      put.left = std::min(part_bytes, object_bytes - part * part_bytes);
      perform(easy, "PUT", url_of(object) + "?partNumber=" + std::to_string(part + 1) + "&uploadId=" + ids[object],
              put);
      tags[object][part] = put.etag;
    });
    in_parallel(objects, [&](CURL* easy, std::size_t i) {
      std::string body = "<CompleteMultipartUpload>";
      for (std::size_t part = 0; part < parts(); ++part) {
        body +=
            "<Part><PartNumber>" + std::to_string(part + 1) + "</PartNumber><ETag>" + tags[i][part] + "</ETag></Part>";
      }
      body += "</CompleteMultipartUpload>";
      Exchange end;
      end.from = body.data();
      end.left = body.size();
      perform(easy, "POST", url_of(i) + "?uploadId=" + ids[i], end);
    });
  }

  void down() {
    in_parallel(objects * parts(), [&](CURL* easy, std::size_t i) {
      const std::size_t object = i / parts();
      const std::size_t begin = i % parts() * part_bytes;
      const std::size_t end = std::min(begin + part_bytes, object_bytes);
      Exchange get;
      get.to = memory.data() + object * object_bytes + begin;
      get.room = end - begin;
      perform(easy, "GET", url_of(object), get, std::to_string(begin) + "-" + std::to_string(end - 1));
    });
  }

  void fill() {
    for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<char>(i * 2654435761U >> 7U);
  }
  [[nodiscard]] bool is_filled() const {
    for (std::size_t i = 0; i < memory.size(); ++i) {
      if (memory[i] != static_cast<char>(i * 2654435761U >> 7U)) return false;
    }
    return true;
  }
};

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

long peak_kib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  curl_global_init(CURL_GLOBAL_ALL);
  Job job{.url = argv[1],
          .objects = std::strtoull(argv[2], nullptr, 10),
          .object_bytes = std::strtoull(argv[3], nullptr, 10),
          .part_bytes = std::strtoull(argv[4], nullptr, 10),
          .threads = std::strtoull(argv[5], nullptr, 10)};
  job.fill();
  for (std::string line; std::getline(std::cin, line);) {
    if (line == "down") std::fill(job.memory.begin(), job.memory.end(), 0);
    const auto start = std::chrono::steady_clock::now();
    const double cpu = cpu_seconds();
    line == "up" ? job.up() : job.down();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const double used = cpu_seconds() - cpu;
    const long memory = (peak_kib() << 10) - static_cast<long>(job.memory.size());
    std::printf("{\"seconds\": %.6f, \"cpu\": %.6f, \"memory\": %ld, \"right\": %s}\n", seconds, used, memory,
                line == "up" || job.is_filled() ? "true" : "false");
    std::fflush(stdout);
  }
}
