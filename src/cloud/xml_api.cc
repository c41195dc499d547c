// The XML API: that of S3, and in the same shape that of Google Cloud Storage.
#include <algorithm>
#include <utility>

#include "cloud/object_api.h"
#include "cloud/ranged_get.h"
#include "cloud/xml_listing.h"
#include "integrity/crc32c.h"
#include "net/encoding.h"
#include "net/xml.h"

namespace torchsnapshot {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kAbortTimeout{5'000};

class XmlApi final : public ObjectApi {
 public:
  explicit XmlApi(std::shared_ptr<StoreClient> client)
      : client_(std::move(client)), is_google_(client_->settings().kind == StoreKind::kGoogleXml) {}

  [[nodiscard]] const StoreClient& client() const noexcept override { return *client_; }
  [[nodiscard]] StoreClient& client() noexcept override { return *client_; }

  std::optional<ObjectFacts> head(const std::string& key, const std::stop_token& stop) override {
    const StoreAnswer answer = look(key, stop);
    if (answer.status() == 404) return std::nullopt;
    return facts_of(answer.result.response);
  }

  std::string get_all(const std::string& key, std::uint64_t limit, const std::stop_token& stop) override {
    return ranged_get_all(*client_, get_request(key, ""), limit, stop);
  }

  ObjectFacts get_front(const std::string& key, std::span<std::byte> out, std::size_t& count,
                        const std::stop_token& stop) override {
    return ranged_get_front(*client_, get_request(key, ""), "etag", out, count, stop);
  }

  void get_range(const std::string& key, const ObjectFacts& facts, std::uint64_t offset, std::span<std::byte> out,
                 const PlaceBytes& place, const std::stop_token& stop) override {
    ranged_get(*client_, get_request(key, facts.version), offset, out, place, stop);
  }

  void put(const std::string& key, std::span<const std::byte> content, bool only_new,
           const std::stop_token& stop) override {
    const std::string marker = random_marker();
    StoreRequest request = make("PutObject", "PUT", key);
    request.body = content;
    add_object_headers(request, marker);
    add_checksum(request, std::nullopt);
    if (only_new) request.headers.push_back(condition_absent());
    const StoreAnswer answer = client_->send(request, stop);
    if (!answer.ok()) settle(request, answer, marker, content.size(), stop);
  }

  Upload start_upload(const std::string& key, std::uint64_t, std::uint64_t, const std::stop_token& stop) override {
    Upload upload{.id = "", .marker = random_marker()};
    StoreRequest request = make("CreateMultipartUpload", "POST", key);
    request.query = {{"uploads", ""}};
    add_object_headers(request, upload.marker);
    if (!is_google_ && client_->settings().send_checksums) {
      request.headers.emplace_back("x-amz-checksum-algorithm", "CRC32C");
    }
    upload.id = document(request, client_->send_ok(request, stop)).child_text("UploadId");
    if (upload.id.empty()) fail_malformed(request, "it has no UploadId");
    return upload;
  }

  UploadedPart put_part(const std::string& key, const Upload& upload, int number, std::span<const std::byte> content,
                        std::optional<std::uint32_t> crc32c, const std::stop_token& stop) override {
    StoreRequest request = make("UploadPart", "PUT", key);
    request.query = {{"partNumber", std::to_string(number)}, {"uploadId", upload.id}};
    request.body = content;
    UploadedPart part{.number = number, .tag = ""};
    const std::string crc = add_checksum(request, crc32c);
    const StoreAnswer answer = client_->send_ok(request, stop);
    part.tag = answer.result.response.header("etag");
    if (part.tag.empty()) fail_malformed(request, "it has no ETag");
    if (!is_google_ && !crc.empty() && !answer.result.response.header("x-amz-checksum-crc32c").empty()) {
      part.tag += "\n" + crc;  // a store that keeps the checksums of parts wants to hear them again
    }
    return part;
  }

  void complete_upload(const std::string& key, const Upload& upload, const std::vector<UploadedPart>& parts,
                       std::uint64_t size, const std::stop_token& stop) override {
    std::string body = "<CompleteMultipartUpload>";
    for (const UploadedPart& part : parts) {
      const auto newline = part.tag.find('\n');
      body += "<Part><PartNumber>" + std::to_string(part.number) + "</PartNumber><ETag>" +
              xml_escape(part.tag.substr(0, newline)) + "</ETag>";
      if (newline != std::string::npos) {
        body += "<ChecksumCRC32C>" + xml_escape(part.tag.substr(newline + 1)) + "</ChecksumCRC32C>";
      }
      body += "</Part>";
    }
    body += "</CompleteMultipartUpload>";
    StoreRequest request = make("CompleteMultipartUpload", "POST", key);
    request.query = {{"uploadId", upload.id}};
    request.body = std::as_bytes(std::span(body));
    request.headers.emplace_back("Content-Type", "application/xml");
    if (!is_google_) request.headers.push_back(condition_absent());
    StoreAnswer answer = client_->send(request, stop);
    if (answer.status() == 501 || (answer.status() == 400 && answer.fault.code == "NotImplemented")) {
      // A store without conditional completion; create() has looked whether the name is free.
      request.headers.pop_back();
      answer = client_->send(request, stop);
    }
    if (!answer.ok()) settle(request, answer, upload.marker, size, stop);
  }

  void abort_upload(const std::string& key, const Upload& upload) noexcept override {
    try {
      StoreRequest request = make("AbortMultipartUpload", "DELETE", key);
      request.query = {{"uploadId", upload.id}};
      client_->send(request, {}, kAbortTimeout);
    } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): prune finds it
    }
  }

  std::vector<ListedUpload> list_uploads(const std::string& prefix, const std::stop_token& stop) override {
    std::vector<ListedUpload> uploads;
    UploadPage page;
    do {
      StoreRequest request = make("ListMultipartUploads", "GET", "");
      // Not by URL: radosgw writes keys so when asked to, but neither says it nor does it with markers.
      request.query = {{"uploads", ""}, {"prefix", prefix}};
      if (page.goes_on) {
        request.query.emplace_back("key-marker", page.next_key);
        request.query.emplace_back("upload-id-marker", page.next_id);
      }
      const StoreAnswer answer = client_->send(request, stop);
      if (answer.status() == 405 || answer.status() == 501) {
        throw Error(ErrorCode::kUnsupported, client_->error_of(request, answer).what());
      }
      if (!answer.ok()) throw client_->error_of(request, answer);
      const std::pair before{page.next_key, page.next_id};
      page = parse_upload_page(document(request, answer));
      for (ListedUpload& upload : page.uploads) {
        if (upload.key.starts_with(prefix)) uploads.push_back(std::move(upload));
      }
      if (page.goes_on && before == std::pair{page.next_key, page.next_id}) {
        fail_malformed(request, "the list is cut off, and does not go on");
      }
    } while (page.goes_on);
    return uploads;
  }

  std::optional<UploadFacts> upload_facts(const ListedUpload& upload, const std::stop_token& stop) override {
    UploadFacts facts;
    PartPage page;
    do {
      StoreRequest request = make("ListParts", "GET", upload.key);
      request.query = {{"uploadId", upload.id}};
      if (page.goes_on) request.query.emplace_back("part-number-marker", page.next);
      const StoreAnswer answer = client_->send(request, stop);
      if (is_gone(answer)) return std::nullopt;
      if (!answer.ok()) throw client_->error_of(request, answer);
      const std::string before = page.next;
      page = parse_part_page(document(request, answer));
      facts.bytes += page.facts.bytes;
      facts.newest = std::max(facts.newest, page.facts.newest);
      if (page.goes_on && page.next == before) fail_malformed(request, "the list is cut off, and does not go on");
    } while (page.goes_on);
    return facts;
  }

  void remove_upload(const ListedUpload& upload, const std::stop_token& stop) override {
    StoreRequest request = make("AbortMultipartUpload", "DELETE", upload.key);
    request.query = {{"uploadId", upload.id}};
    const StoreAnswer answer = client_->send(request, stop);
    if (!answer.ok() && !is_gone(answer)) throw client_->error_of(request, answer);
  }

  std::vector<ListedObject> list(const std::string& prefix, std::size_t most, const std::stop_token& stop) override {
    std::vector<ListedObject> objects;
    ObjectPage page;
    do {
      StoreRequest request = make("ListObjects", "GET", "");
      // By URL: XML can't carry every character of a key.
      request.query = {{"list-type", "2"}, {"prefix", prefix}, {"encoding-type", "url"}};
      if (page.goes_on) request.query.emplace_back("continuation-token", page.next);
      const std::string before = page.next;
      page = parse_object_page(document(request, client_->send_ok(request, stop)));
      for (ListedObject& object : page.objects) {
        if (object.key.starts_with(prefix)) objects.push_back(std::move(object));
      }
      if (page.goes_on && (page.next.empty() || page.next == before)) {
        fail_malformed(request, "the list is cut off, and does not go on");
      }
    } while (page.goes_on && objects.size() <= most);
    return objects;
  }

  void remove(const std::string& key, const std::stop_token& stop) override {
    const StoreRequest request = make("DeleteObject", "DELETE", key);
    const StoreAnswer answer = client_->send(request, stop);
    if (!answer.ok() && !is_gone(answer)) throw client_->error_of(request, answer);
  }

 private:
  static bool is_gone(const StoreAnswer& answer) {
    return answer.status() == 404 && answer.fault.code != "NoSuchBucket";
  }

  [[nodiscard]] StoreRequest make(const std::string& operation, const std::string& method,
                                  const std::string& key) const {
    StoreRequest request{.operation = operation, .method = method, .key = key};
    const StoreSettings& settings = client_->settings();
    if (!is_google_ && settings.requester_pays) request.headers.emplace_back("x-amz-request-payer", "requester");
    if (is_google_ && !settings.user_project.empty()) {
      request.headers.emplace_back("x-goog-user-project", settings.user_project);
    }
    return request;
  }

  [[nodiscard]] StoreRequest get_request(const std::string& key, const std::string& version) const {
    StoreRequest request = make("GetObject", "GET", key);
    if (!version.empty()) request.headers.emplace_back("If-Match", version);
    return request;
  }

  void add_object_headers(StoreRequest& request, const std::string& marker) const {
    const StoreSettings& settings = client_->settings();
    request.headers.emplace_back(marker_header(), marker);
    if (!settings.storage_class.empty()) {
      request.headers.emplace_back(is_google_ ? "x-goog-storage-class" : "x-amz-storage-class", settings.storage_class);
    }
    if (is_google_) return;
    if (!settings.server_side_encryption.empty()) {
      request.headers.emplace_back("x-amz-server-side-encryption", settings.server_side_encryption);
    }
    if (!settings.sse_kms_key_id.empty()) {
      request.headers.emplace_back("x-amz-server-side-encryption-aws-kms-key-id", settings.sse_kms_key_id);
    }
  }

  /// `known`: the CRC of the body, if somebody has made it.
  std::string add_checksum(StoreRequest& request, std::optional<std::uint32_t> known) const {
    if (!client_->settings().send_checksums) return "";
    std::string crc = crc32c_header(known ? *known : crc32c(0, request.body));
    if (is_google_) {
      request.headers.emplace_back("x-goog-hash", "crc32c=" + crc);
    } else {
      request.headers.emplace_back("x-amz-checksum-crc32c", crc);
    }
    return crc;
  }

  [[nodiscard]] const char* marker_header() const noexcept {
    return is_google_ ? "x-goog-meta-torchsnapshot-write" : "x-amz-meta-torchsnapshot-write";
  }

  [[nodiscard]] std::pair<std::string, std::string> condition_absent() const {
    return is_google_ ? std::pair<std::string, std::string>{"x-goog-if-generation-match", "0"}
                      : std::pair<std::string, std::string>{"If-None-Match", "*"};
  }

  static ObjectFacts facts_of(const HttpResponse& response) {
    return {.size = response.header_number("content-length").value_or(0),
            .version = std::string(response.header("etag"))};
  }

  /// HEAD; a success or a 404. An answer to HEAD has no body to say what is wrong, so then it is asked by GET.
  StoreAnswer look(const std::string& key, const std::stop_token& stop) {
    const StoreRequest request = make("HeadObject", "HEAD", key);
    StoreAnswer answer = client_->send(request, stop);
    if (answer.ok() || answer.status() == 404) return answer;
    StoreRequest get = get_request(key, "");
    get.operation = "HeadObject";
    get.headers.emplace_back("Range", "bytes=0-0");
    get.max_text = 64U << 10U;
    const StoreAnswer told = client_->send(get, stop);
    if (told.ok() || told.status() == 416 || told.status() == 404)
      answer = client_->send(request, stop);  // region, clock or key are set right
    if (answer.ok() || answer.status() == 404) return answer;
    throw client_->error_of(get, told.ok() ? answer : told);
  }

  /// A conditional write that failed: the answer to an earlier attempt (libcurl makes some by itself, on connections
  /// that turn out to be dead) may have been lost on the way, after the store had done the work. Then the object is
  /// there and carries our mark.
  void settle(const StoreRequest& request, const StoreAnswer& answer, const std::string& marker, std::uint64_t size,
              const std::stop_token& stop) {
    const bool may_be_ours = answer.status() == 412 || answer.status() == 404 || answer.status() == 409;
    if (answer.result.fault == TransportFault::kNone && may_be_ours) {
      const StoreAnswer found = look(request.key, stop);
      if (found.ok() && found.result.response.header(marker_header()) == marker &&
          facts_of(found.result.response).size == size) {
        return;
      }
    }
    if (answer.status() == 412) {
      throw Error(ErrorCode::kAlreadyExists, request.operation + " " + client_->name_of(request.key) + ": it exists");
    }
    throw client_->error_of(request, answer);
  }

  [[noreturn]] void fail_malformed(const StoreRequest& request, const std::string& why) const {
    throw Error(ErrorCode::kIo, request.operation + " " + client_->name_of(request.key) +
                                    ": the answer makes no sense: " + why + "; is this an object store?");
  }

  [[nodiscard]] XmlElement document(const StoreRequest& request, const StoreAnswer& answer) const {
    try {
      return parse_xml(answer.result.response.text);
    } catch (const Error& error) {
      fail_malformed(request, error.what());
    }
  }

  const std::shared_ptr<StoreClient> client_;
  const bool is_google_;
};

}  // namespace

std::shared_ptr<ObjectApi> make_xml_api(std::shared_ptr<StoreClient> client) {
  return std::make_shared<XmlApi>(std::move(client));
}

}  // namespace torchsnapshot
