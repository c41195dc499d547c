// The JSON API of Google Cloud Storage, for emulators (STORAGE_EMULATOR_HOST), which know nothing else.
#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "cloud/object_api.h"
#include "cloud/ranged_get.h"
#include "net/encoding.h"
#include "net/json.h"

namespace torchsnapshot {
namespace {

/// A resumable upload: its chunks have to arrive in order, so those that come early wait here.
struct Session {
  std::mutex mutex;
  std::uint64_t size = 0;
  std::uint64_t sent = 0;
  int next = 1;
  std::map<int, std::vector<std::byte>> early;
};

class JsonApi final : public ObjectApi {
 public:
  explicit JsonApi(std::shared_ptr<StoreClient> client) : client_(std::move(client)) {
    base_ = client_->settings().endpoint->text();
    while (base_.ends_with('/')) base_.pop_back();
  }

  [[nodiscard]] const StoreClient& client() const noexcept override { return *client_; }
  [[nodiscard]] StoreClient& client() noexcept override { return *client_; }

  std::optional<ObjectFacts> head(const std::string& key, const std::stop_token& stop) override {
    const StoreRequest request = make("GetObjectMetadata", "GET", key, object_url(key));
    const StoreAnswer answer = client_->send(request, stop);
    if (answer.status() == 404 && !is_missing_bucket(answer)) return std::nullopt;
    if (!answer.ok()) throw client_->error_of(request, answer);
    const JsonValue described = document(request, answer);
    const auto size = described.field_integer("size");
    if (!size || *size < 0) fail_malformed(request, "it has no size");
    return ObjectFacts{.size = static_cast<std::uint64_t>(*size),
                       .version = std::string(described.field_text("generation"))};
  }

  std::string get_all(const std::string& key, std::uint64_t limit, const std::stop_token& stop) override {
    return ranged_get_all(*client_, get_request(key, ""), limit, stop);
  }

  ObjectFacts get_front(const std::string& key, std::span<std::byte> out, std::size_t& count,
                        const std::stop_token& stop) override {
    // The answer to a read does not always name the generation, and emulators differ in what they make of ranges.
    const auto facts = head(key, stop);
    if (!facts) {
      throw Error(ErrorCode::kNotFound, "GetObject " + client_->name_of(key) + ": there is no such object");
    }
    count = std::min<std::uint64_t>(out.size(), facts->size);
    get_range(key, *facts, 0, out.first(count), nullptr, stop);
    return *facts;
  }

  void get_range(const std::string& key, const ObjectFacts& facts, std::uint64_t offset, std::span<std::byte> out,
                 const PlaceBytes& place, const std::stop_token& stop) override {
    ranged_get(*client_, get_request(key, facts.version), offset, out, place, stop);
  }

  void put(const std::string& key, std::span<const std::byte> content, bool only_new,
           const std::stop_token& stop) override {
    StoreRequest request = make("PutObject", "POST", key, upload_url());
    request.query = {{"uploadType", "media"}, {"name", key}};
    if (only_new) request.query.emplace_back("ifGenerationMatch", "0");
    request.body = content;
    request.headers.emplace_back("Content-Type", "application/octet-stream");
    const StoreAnswer answer = client_->send(request, stop);
    if (!answer.ok()) settle(request, answer, stop);
  }

  Upload start_upload(const std::string& key, std::uint64_t size, std::uint64_t, const std::stop_token& stop) override {
    StoreRequest request = make("StartResumableUpload", "POST", key, upload_url());
    request.query = {{"uploadType", "resumable"}, {"name", key}, {"ifGenerationMatch", "0"}};
    const std::string body = "{\"name\":" + json_quote(key) + "}";
    request.body = std::as_bytes(std::span(body));
    request.headers.emplace_back("Content-Type", "application/json");
    const StoreAnswer answer = client_->send(request, stop);
    if (answer.status() == 412) fail_exists(request);
    if (!answer.ok()) throw client_->error_of(request, answer);
    Upload upload{.id = std::string(answer.result.response.header("location")), .marker = ""};
    if (upload.id.empty()) fail_malformed(request, "it has no Location");
    const std::lock_guard lock(mutex_);
    sessions_[upload.id] = std::make_shared<Session>();
    sessions_[upload.id]->size = size;
    return upload;
  }

  UploadedPart put_part(const std::string& key, const Upload& upload, int number, std::span<const std::byte> content,
                        std::optional<std::uint32_t> /*crc32c*/, const std::stop_token& stop) override {
    const std::shared_ptr<Session> session = session_of(upload);
    const std::lock_guard lock(session->mutex);
    // The last chunk makes the object appear: it is for complete_upload.
    const auto is_last = [&](std::uint64_t size) { return session->sent + size == session->size; };
    if (number != session->next || is_last(content.size())) {
      session->early.emplace(number, std::vector<std::byte>(content.begin(), content.end()));
    } else {
      put_chunk(key, upload, *session, content, stop);
    }
    for (auto early = session->early.find(session->next);
         early != session->early.end() && !is_last(early->second.size()); early = session->early.find(session->next)) {
      put_chunk(key, upload, *session, early->second, stop);
      session->early.erase(early);
    }
    return {.number = number, .tag = ""};
  }

  void complete_upload(const std::string& key, const Upload& upload, const std::vector<UploadedPart>&,
                       std::uint64_t size, const std::stop_token& stop) override {
    const std::shared_ptr<Session> session = session_of(upload);
    {
      const std::lock_guard lock(session->mutex);
      const auto last = session->early.find(session->next);
      if (last != session->early.end()) put_chunk(key, upload, *session, last->second, stop);
    }
    forget(upload);
    const auto facts = head(key, stop);
    if (session->sent != size || !facts || facts->size != size) {
      throw Error(ErrorCode::kIo, "PutObject " + client_->name_of(key) + ": the upload has ended, but the object has " +
                                      std::to_string(facts ? facts->size : 0) + " of " + std::to_string(size) +
                                      " bytes");
    }
  }

  void abort_upload(const std::string& key, const Upload& upload) noexcept override {
    try {
      forget(upload);
      client_->send(make("AbortResumableUpload", "DELETE", key, upload.id), {}, std::chrono::milliseconds(5'000));
    } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): an unfinished session vanishes by itself
    }
  }

  // A session can't be listed, and the store forgets it after a week.
  std::vector<ListedUpload> list_uploads(const std::string&, const std::stop_token&) override { return {}; }
  std::optional<UploadFacts> upload_facts(const ListedUpload&, const std::stop_token&) override { return std::nullopt; }
  void remove_upload(const ListedUpload&, const std::stop_token&) override {}

  std::vector<ListedObject> list(const std::string& prefix, std::size_t most, const std::stop_token& stop) override {
    std::vector<ListedObject> objects;
    std::string token;
    do {
      StoreRequest request = make("ListObjects", "GET", "", bucket_url());
      request.query = {{"prefix", prefix}};
      if (!token.empty()) request.query.emplace_back("pageToken", token);
      const JsonValue page = document(request, client_->send_ok(request, stop));
      if (const JsonValue* const items = page.field("items"); items != nullptr) {
        for (const JsonValue& item : items->items) {
          ListedObject object{.key = std::string(item.field_text("name")),
                              .size = std::nullopt,
                              .modified = parse_iso_date(item.field_text("updated"))};
          if (const auto size = item.field_integer("size"); size && *size >= 0) object.size = *size;
          if (object.key.starts_with(prefix)) objects.push_back(std::move(object));
        }
      }
      const std::string before = std::exchange(token, std::string(page.field_text("nextPageToken")));
      if (!token.empty() && token == before) fail_malformed(request, "the list does not go on");
    } while (!token.empty() && objects.size() <= most);
    return objects;
  }

  void remove(const std::string& key, const std::stop_token& stop) override {
    const StoreRequest request = make("DeleteObject", "DELETE", key, object_url(key));
    const StoreAnswer answer = client_->send(request, stop);
    const bool gone = answer.status() == 404 && !is_missing_bucket(answer);
    if (!answer.ok() && !gone) throw client_->error_of(request, answer);
  }

 private:
  [[nodiscard]] std::string bucket_url() const {
    return base_ + "/storage/v1/b/" + percent_encode(client_->settings().bucket) + "/o";
  }
  [[nodiscard]] std::string object_url(const std::string& key) const {
    return bucket_url() + "/" + percent_encode(key);
  }
  [[nodiscard]] std::string upload_url() const {
    return base_ + "/upload/storage/v1/b/" + percent_encode(client_->settings().bucket) + "/o";
  }

  [[nodiscard]] StoreRequest make(const std::string& operation, const std::string& method, const std::string& key,
                                  const std::string& url) const {
    StoreRequest request{.operation = operation, .method = method, .key = key};
    request.absolute_url = url;
    if (!client_->settings().user_project.empty()) {
      request.headers.emplace_back("x-goog-user-project", client_->settings().user_project);
    }
    return request;
  }

  [[nodiscard]] StoreRequest get_request(const std::string& key, const std::string& generation) const {
    StoreRequest request = make("GetObject", "GET", key, object_url(key));
    request.query = {{"alt", "media"}};
    if (!generation.empty()) request.query.emplace_back("generation", generation);
    return request;
  }

  static bool is_missing_bucket(const StoreAnswer& answer) {
    return answer.fault.message.find("bucket does not exist") != std::string::npos;
  }

  std::shared_ptr<Session> session_of(const Upload& upload) {
    const std::lock_guard lock(mutex_);
    const auto found = sessions_.find(upload.id);
    if (found == sessions_.end()) throw Error(ErrorCode::kInternal, "an upload that is not under way");
    return found->second;
  }

  void forget(const Upload& upload) {
    const std::lock_guard lock(mutex_);
    sessions_.erase(upload.id);
  }

  void put_chunk(const std::string& key, const Upload& upload, Session& session, std::span<const std::byte> content,
                 const std::stop_token& stop) {
    StoreRequest request = make("UploadChunk", "PUT", key, upload.id);
    request.body = content;
    request.headers.emplace_back("Content-Range", "bytes " + std::to_string(session.sent) + "-" +
                                                      std::to_string(session.sent + content.size() - 1) + "/" +
                                                      std::to_string(session.size));
    const StoreAnswer answer = client_->send(request, stop);
    const bool is_last = session.sent + content.size() == session.size;
    const bool done_before = is_last && answer.status() == 404;  // complete_upload looks whether it is there
    if (is_last ? !answer.ok() && !done_before : answer.status() != 308) {
      if (answer.status() == 412) fail_exists(request);
      throw client_->error_of(request, answer);
    }
    session.sent += content.size();
    ++session.next;
  }

  /// See XmlApi: an answer may have been lost. There is no mark here, so the content has to do.
  void settle(const StoreRequest& request, const StoreAnswer& answer, const std::stop_token& stop) {
    if (answer.status() == 412) {
      const auto facts = head(request.key, stop);
      if (facts && facts->size == request.body.size()) {
        std::vector<std::byte> content(facts->size);
        get_range(request.key, *facts, 0, content, nullptr, stop);
        if (std::equal(content.begin(), content.end(), request.body.begin())) return;
      }
    }
    if (answer.status() == 412) fail_exists(request);
    throw client_->error_of(request, answer);
  }

  [[noreturn]] void fail_exists(const StoreRequest& request) const {
    throw Error(ErrorCode::kAlreadyExists, request.operation + " " + client_->name_of(request.key) + ": it exists");
  }

  [[noreturn]] void fail_malformed(const StoreRequest& request, const std::string& why) const {
    throw Error(ErrorCode::kIo, request.operation + " " + client_->name_of(request.key) +
                                    ": the answer makes no sense: " + why + "; is this an object store?");
  }

  [[nodiscard]] JsonValue document(const StoreRequest& request, const StoreAnswer& answer) const {
    try {
      return parse_json(answer.result.response.text);
    } catch (const Error& error) {
      fail_malformed(request, error.what());
    }
  }

  const std::shared_ptr<StoreClient> client_;
  std::string base_;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Session>> sessions_;
};

}  // namespace

std::shared_ptr<ObjectApi> make_json_api(std::shared_ptr<StoreClient> client) {
  return std::make_shared<JsonApi>(std::move(client));
}

}  // namespace torchsnapshot
