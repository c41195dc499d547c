// What an object store can do, whatever its protocol. Keys are whole (with the prefix).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "cloud/store_client.h"
#include "net/time_text.h"
#include "torchsnapshot/storage.h"

namespace torchsnapshot {

/// What is known of an object. `version` names this content: reads that carry it fail when it was replaced.
struct ObjectFacts {
  std::uint64_t size = 0;
  std::string version;
};

/// A part of a multipart upload that is there.
struct UploadedPart {
  int number = 0;
  std::string tag;
};

struct Upload {
  std::string id;
  std::string marker;  ///< a random text kept with the object, by which its writer knows it again
};

/// An object in a listing; what the answer does not tell is absent.
struct ListedObject {
  std::string key;
  std::optional<std::uint64_t> size;
  std::optional<UtcSeconds> modified;
};

/// A multipart upload that is under way or was left behind.
struct ListedUpload {
  std::string key;
  std::string id;
  std::optional<UtcSeconds> begun;
};

/// What has arrived of an upload.
struct UploadFacts {
  std::uint64_t bytes = 0;
  std::optional<UtcSeconds> newest;  ///< when the last part arrived; nothing when there is none
};

/// Each call is one request (lists: several) with its retries. Throws Error that names bucket, key, operation, status,
/// request id and what to do. Thread-safe.
class ObjectApi {
 public:
  virtual ~ObjectApi() = default;
  ObjectApi() = default;
  ObjectApi(const ObjectApi&) = delete;
  ObjectApi& operator=(const ObjectApi&) = delete;

  [[nodiscard]] virtual const StoreClient& client() const noexcept = 0;
  [[nodiscard]] virtual StoreClient& client() noexcept = 0;

  /// Size and version; nothing when there is no such object.
  virtual std::optional<ObjectFacts> head(const std::string& key, const std::stop_token& stop) = 0;
  /// The whole content and its version. Throws Error(kNotFound); Error(kCorrupt) for more than `limit` bytes.
  virtual std::string get_all(const std::string& key, std::uint64_t limit, const std::stop_token& stop) = 0;
  /// The first bytes, as many as fit into `out` and the object has; `count` tells how many.
  virtual ObjectFacts get_front(const std::string& key, std::span<std::byte> out, std::size_t& count,
                                const std::stop_token& stop) = 0;
  /// Fills `out` from `offset` on, of this version; through `place`, if there is one, as ObjectReader::read_placing
  /// does. After a broken connection only the rest is fetched again. Throws Error(kCorrupt) when the object was
  /// replaced.
  virtual void get_range(const std::string& key, const ObjectFacts& facts, std::uint64_t offset,
                         std::span<std::byte> out, const PlaceBytes& place, const std::stop_token& stop) = 0;

  /// `only_new`: throws Error(kAlreadyExists) when there is one, where the store can tell.
  virtual void put(const std::string& key, std::span<const std::byte> content, bool only_new,
                   const std::stop_token& stop) = 0;
  /// Starts a multipart upload of `size` bytes in parts of `part_bytes`, the last one shorter.
  virtual Upload start_upload(const std::string& key, std::uint64_t size, std::uint64_t part_bytes,
                              const std::stop_token& stop) = 0;
  /// Parts from 1 on, in any order. `crc32c`: of `content`, if the caller has it.
  virtual UploadedPart put_part(const std::string& key, const Upload& upload, int number,
                                std::span<const std::byte> content, std::optional<std::uint32_t> crc32c,
                                const std::stop_token& stop) = 0;
  /// `parts`: all, by number. As put with only_new.
  virtual void complete_upload(const std::string& key, const Upload& upload, const std::vector<UploadedPart>& parts,
                               std::uint64_t size, const std::stop_token& stop) = 0;
  /// Best effort, within a few seconds.
  virtual void abort_upload(const std::string& key, const Upload& upload) noexcept = 0;

  /// All uploads that are not complete and whose keys start with `prefix`; none where the protocol forgets them by
  /// itself. Throws Error(kUnsupported) when the store can't list them.
  virtual std::vector<ListedUpload> list_uploads(const std::string& prefix, const std::stop_token& stop) = 0;
  /// Nothing when there is no such upload (any more).
  virtual std::optional<UploadFacts> upload_facts(const ListedUpload& upload, const std::stop_token& stop) = 0;
  /// As abort_upload, for one that another process began, and a failure is thrown. A missing one is no error.
  virtual void remove_upload(const ListedUpload& upload, const std::stop_token& stop) = 0;

  /// Objects whose keys start with `prefix`, in no particular order: all, or more than `most`.
  virtual std::vector<ListedObject> list(const std::string& prefix, std::size_t most, const std::stop_token& stop) = 0;
  /// A missing object is no error.
  virtual void remove(const std::string& key, const std::stop_token& stop) = 0;
};

/// S3, or the XML API of Google Cloud Storage.
std::shared_ptr<ObjectApi> make_xml_api(std::shared_ptr<StoreClient> client);
/// The JSON API of Google Cloud Storage, as its emulators have it. An upload of several parts goes out in order, one
/// part at a time: parts that come early wait in memory.
std::shared_ptr<ObjectApi> make_json_api(std::shared_ptr<StoreClient> client);

/// A random text of 32 hex digits.
std::string random_marker();
/// The text form of a CRC-32C in headers: base64 of its four bytes, the highest first.
std::string crc32c_header(std::uint32_t crc);
/// How a response to "GET key from `offset` on, at most `count` bytes" relates to what was asked.
struct RangeCheck {
  bool usable = false;     ///< the body is exactly the part asked for, as far as the object has it
  std::uint64_t size = 0;  ///< of the whole object, where the response tells
  std::string complaint;   ///< why it is not usable
};
RangeCheck check_range(const HttpResponse& head, std::uint64_t offset, std::uint64_t count);

}  // namespace torchsnapshot
