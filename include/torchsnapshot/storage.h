// Where objects are kept. Every backend (file system, memory, object stores, a face's plugin) is a Storage,
// and passes the conformance suite src/storage/conformance.h.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "torchsnapshot/bytes.h"

namespace torchsnapshot {

/// One object being written: blocks at offsets, in any order, from any thread. Before finish() returns,
/// readers find either no such object or a part of it.
class ObjectWriter {
 public:
  virtual ~ObjectWriter() = default;  ///< without finish(): the object is abandoned, best effort
  ObjectWriter() = default;
  ObjectWriter(const ObjectWriter&) = delete;
  ObjectWriter& operator=(const ObjectWriter&) = delete;

  /// Writes `data` at `offset`; returns when the memory may be reused. Blocks don't overlap. Throws
  /// Error(kInvalidArgument) unless the block lies within the size given to Storage::create. Thread-safe.
  virtual void write(std::uint64_t offset, std::span<const std::byte> data) = 0;
  /// As write(), by a caller that has the CRC-32C of `data`: a backend that sends sums along need not make it.
  virtual void write_summed(std::uint64_t offset, std::span<const std::byte> data, std::uint32_t crc32c) {
    static_cast<void>(crc32c);
    write(offset, data);
  }
  /// All blocks are written: make the content durable. Called once, after every write returned; throws
  /// Error(kInvalidArgument) when bytes are missing. After a failure the object is abandoned.
  virtual void finish() = 0;
};

/// Brings bytes of an object to where they belong while it is being read: those from `offset` on, which `src` has, to
/// `dst`. They are there already when both begin at the same address. What it throws comes out of the read.
using PlaceBytes = std::function<void(std::uint64_t offset, std::span<std::byte> dst, std::span<const std::byte> src)>;

/// One object being read. Thread-safe.
class ObjectReader {
 public:
  virtual ~ObjectReader() = default;
  ObjectReader() = default;
  ObjectReader(const ObjectReader&) = delete;
  ObjectReader& operator=(const ObjectReader&) = delete;

  /// Fills `out` with the bytes from `offset` on. Throws Error(kCorrupt) when the object ends before; `out`
  /// may be filled in part then.
  virtual void read(std::uint64_t offset, std::span<std::byte> out) = 0;
  /// As read(), and every byte passes `place` exactly once, in pieces of any size, in ascending order, one call at a
  /// time. Whoever sums what comes up while `place` copies it has one pass over the memory with a backend that has the
  /// bytes in buffers of its own (object stores); the implementation here reads, and then calls `place` once.
  virtual void read_placing(std::uint64_t offset, std::span<std::byte> out, const PlaceBytes& place) {
    read(offset, out);
    if (!out.empty()) place(offset, out, out);
  }
  /// The bytes that read() would give, where they lie in memory already (in the page cache, for one) and can be had
  /// without a copy; nothing otherwise. Throws as read(). They are meant to be copied from soon, while this
  /// reader is there.
  virtual std::optional<SharedBytes> view(std::uint64_t offset, std::size_t size) {
    static_cast<void>(offset);
    static_cast<void>(size);
    return std::nullopt;
  }
};

/// What a listing says of an object.
struct ObjectInfo {
  std::string location;
  std::optional<std::uint64_t> size;
  /// When its content was last written, by the storage's clock.
  std::optional<std::chrono::system_clock::time_point> modified;
};

/// An object whose writing was begun and has not ended, where a backend keeps those apart from its objects: the
/// multipart upload of an object store, whose parts cost money until it is completed or removed.
struct UnfinishedObject {
  std::string location;
  std::string id;           ///< tells attempts at one location apart; the backend's own
  std::uint64_t bytes = 0;  ///< that are stored of it
  /// When it was begun or its last part arrived, by the storage's clock.
  std::optional<std::chrono::system_clock::time_point> modified;
};

/// A place with named objects under one root (the snapshot's path). Locations are bytes, relative, with '/'
/// between components; "a//./b" is "a/b". One that leaves the root is refused with Error(kCorrupt) before
/// anything else happens. Blocking and thread-safe. Errors are Error, and name root, location and
/// operation. A `stop` that is requested makes a call fail with Error(kCancelled) soon; writers and readers keep
/// the one they were made with.
class Storage {
 public:
  virtual ~Storage() = default;
  Storage() = default;
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  /// What messages call this storage ("fs:///a/b").
  [[nodiscard]] virtual std::string url() const = 0;

  /// How the data of large objects moves, for messages and benchmarks ("io_uring + O_DIRECT"); "" while that isn't
  /// decided, and where there is but one way.
  [[nodiscard]] virtual std::string io_path() const { return ""; }
  /// The size of the pieces by which large objects move best, at offsets that are multiples of it; 0: any will do. At
  /// least 1 MiB, and a multiple of 4 KiB.
  [[nodiscard]] virtual std::uint64_t block_bytes() const noexcept { return 0; }
  /// From now on at most `most` transfers of large pieces are to move data at once. Returns by how many threads that is
  /// done best: more than `most` where a transfer waits for answers, in which time others can move data. The storage
  /// sees to the limit.
  virtual std::size_t limit_transfers(std::size_t most) { return most; }
  /// What is worth telling and no error, such as a fallback that costs speed, since the last call; each once.
  virtual std::vector<std::string> take_notices() { return {}; }

  /// Starts a new object of exactly `size` bytes. Throws Error(kAlreadyExists) when the name is taken, and
  /// Error(kNoSpace), where the backend can tell, when there is no room for it.
  virtual std::unique_ptr<ObjectWriter> create(const std::string& location, std::uint64_t size,
                                               std::stop_token stop) = 0;
  /// Opens an object. Throws Error(kNotFound) if there is none.
  virtual std::unique_ptr<ObjectReader> open(const std::string& location, std::stop_token stop) = 0;
  /// The whole object. Throws Error(kNotFound) if there is none, Error(kCorrupt) if it has more than `limit` bytes.
  virtual std::string read_all(const std::string& location, std::uint64_t limit, std::stop_token stop) = 0;
  /// Size of each object, in the order asked; nothing where the backend can't tell without reading.
  /// Throws Error(kNotFound) that names the first missing one.
  virtual std::vector<std::optional<std::uint64_t>> sizes(std::span<const std::string> locations,
                                                          std::stop_token stop) = 0;

  /// Makes every finished object reachable after a power cut, and every removed one gone (fs: syncs the folders). When
  /// it has failed once for want of the disk it fails for good: what was lost can't be known.
  virtual void sync() = 0;
  /// Atomically creates or replaces a small object; durable when it returns, and so is all that sync() covers.
  /// Readers see the old content or the new, never a mixture. After a failure it is one of the two.
  virtual void publish(const std::string& location, std::string_view content) = 0;

  /// Locations of all objects below the root that start with `prefix`, sorted by bytes; none when the root
  /// isn't there. On a file system those of unfinished objects too, and what a crash left.
  virtual std::vector<std::string> list(const std::string& prefix) = 0;
  /// The same objects with sizes and times, where the backend can tell them without reading. One that disappears
  /// meanwhile is left out. The implementation here asks list() and sizes(), and knows no times.
  virtual std::vector<ObjectInfo> list_objects(const std::string& prefix);
  /// Removes objects (missing ones are no error), and folders that this leaves empty, but not the root. Goes on
  /// after a failure, and throws the first one.
  virtual void remove(std::span<const std::string> locations) = 0;

  /// Unfinished objects whose locations start with `prefix`, sorted by location; those of running writers too. None
  /// here, and where a backend keeps none apart: list() has what a crash left there. Throws Error(kUnsupported) where
  /// there may be some, and the backend can't tell.
  virtual std::vector<UnfinishedObject> list_unfinished(const std::string& prefix);
  /// Removes what is stored of unfinished objects; a writer that still works on one fails. One that is gone or complete
  /// is no error, and a complete object stays. Goes on after a failure, and throws the first one.
  virtual void remove_unfinished(std::span<const UnfinishedObject> objects);
};

/// Credentials by name, as a program's own code finds them: "access_key_id", "secret_access_key" and "session_token"
/// for s3://, "token" for gs://; optionally "expires" (ISO 8601). Called when there are none yet and shortly before the
/// last ones expire, by one thread at a time, which may be any. What it throws ends the operation.
using CredentialsCallback = std::function<std::map<std::string, std::string>()>;

/// Settings of a backend by name, as text. Each backend documents and validates its own.
using StorageOptions = std::map<std::string, std::string>;

/// The file system below `root`; the folder is made by the first create or publish.
/// Option "io": how the data of objects of 256 KiB and more moves.
/// - "auto", the default: the first of the following that works, decided once per device; each that doesn't is a notice
/// - "uring": direct I/O, several transfers per thread at once by io_uring
/// - "direct": direct I/O, one transfer per thread at once
/// - "buffered": the page cache
///
/// With "uring" and "direct" it is an Error(kUnsupported) when that does not work. A key that is not known, or a value,
/// is an Error(kInvalidArgument) that lists the known ones.
std::shared_ptr<Storage> open_fs_storage(const std::string& root, const StorageOptions& options = {});

/// Objects in this process's memory, shared by all that open the same name ("memory://name"), until they are
/// removed. For tests and tools.
std::shared_ptr<Storage> open_memory_storage(const std::string& name);

/// Objects in a bucket of S3, or of a store that speaks its protocol, below a prefix: "bucket/prefix". Options, and
/// where credentials come from: docs/object-stores.md. Throws Error(kInvalidArgument) for an option that is unknown
/// (the message lists the known ones) or malformed, Error(kUnsupported) without libcurl. Sends nothing yet.
std::shared_ptr<Storage> open_s3_storage(const std::string& bucket_and_prefix, const StorageOptions& options = {},
                                         CredentialsCallback credentials = nullptr);
/// As open_s3_storage, for Google Cloud Storage.
std::shared_ptr<Storage> open_gcs_storage(const std::string& bucket_and_prefix, const StorageOptions& options = {},
                                          CredentialsCallback credentials = nullptr);

/// Opens the backend of a URL: "path", "fs://path", "memory://name", "s3://bucket/prefix", "gs://bucket/prefix".
/// Touches nothing yet. `credentials`: for the last two only. Throws Error(kUnsupported) for another scheme, naming
/// those that this build has.
std::shared_ptr<Storage> open_storage(const std::string& url, const StorageOptions& options = {},
                                      const CredentialsCallback& credentials = nullptr);

}  // namespace torchsnapshot
