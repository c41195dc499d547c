// Our names of libcurl's constants against libcurl's own header.
#include "net/curl_abi.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>

#if __has_include(<curl/curl.h>)
#include <curl/curl.h>

namespace torchsnapshot {
namespace {

TEST(CurlAbi, IsThatOfTheHeader) {
  const auto same = [](long ours, long theirs) { EXPECT_EQ(ours, theirs); };
  same(curl::kBufferSize, CURLOPT_BUFFERSIZE);
  same(curl::kCaInfo, CURLOPT_CAINFO);
  same(curl::kConnectTimeoutMs, CURLOPT_CONNECTTIMEOUT_MS);
  same(curl::kCustomRequest, CURLOPT_CUSTOMREQUEST);
  same(curl::kErrorBuffer, CURLOPT_ERRORBUFFER);
  same(curl::kHeaderData, CURLOPT_HEADERDATA);
  same(curl::kHeaderFunction, CURLOPT_HEADERFUNCTION);
  same(curl::kHttpHeader, CURLOPT_HTTPHEADER);
  same(curl::kHttpVersion, CURLOPT_HTTP_VERSION);
  same(curl::kInFileSizeLarge, CURLOPT_INFILESIZE_LARGE);
  same(curl::kNoBody, CURLOPT_NOBODY);
  same(curl::kNoProxy, CURLOPT_NOPROXY);
  same(curl::kNoSignal, CURLOPT_NOSIGNAL);
  same(curl::kPathAsIs, CURLOPT_PATH_AS_IS);
  same(curl::kReadData, CURLOPT_READDATA);
  same(curl::kReadFunction, CURLOPT_READFUNCTION);
  same(curl::kSeekData, CURLOPT_SEEKDATA);
  same(curl::kSeekFunction, CURLOPT_SEEKFUNCTION);
  same(curl::kSuppressConnectHeaders, CURLOPT_SUPPRESS_CONNECT_HEADERS);
  same(curl::kTcpKeepAlive, CURLOPT_TCP_KEEPALIVE);
  same(curl::kUpload, CURLOPT_UPLOAD);
  same(curl::kUploadBufferSize, CURLOPT_UPLOAD_BUFFERSIZE);
  same(curl::kUrl, CURLOPT_URL);
  same(curl::kUserAgent, CURLOPT_USERAGENT);
  same(curl::kWriteData, CURLOPT_WRITEDATA);
  same(curl::kWriteFunction, CURLOPT_WRITEFUNCTION);
  same(curl::kHttpVersion11, CURL_HTTP_VERSION_1_1);
  same(curl::kAbortRead, CURL_READFUNC_ABORT);
  same(curl::kInfoResponseCode, CURLINFO_RESPONSE_CODE);
  same(curl::kInfoActiveSocket, CURLINFO_ACTIVESOCKET);
  same(curl::kOk, CURLE_OK);
  same(curl::kCouldntResolveProxy, CURLE_COULDNT_RESOLVE_PROXY);
  same(curl::kCouldntResolveHost, CURLE_COULDNT_RESOLVE_HOST);
  same(curl::kCouldntConnect, CURLE_COULDNT_CONNECT);
  same(curl::kWeirdServerReply, CURLE_WEIRD_SERVER_REPLY);
  same(curl::kPartialFile, CURLE_PARTIAL_FILE);
  same(curl::kWriteError, CURLE_WRITE_ERROR);
  same(curl::kOutOfMemory, CURLE_OUT_OF_MEMORY);
  same(curl::kOperationTimedOut, CURLE_OPERATION_TIMEDOUT);
  same(curl::kSslConnectError, CURLE_SSL_CONNECT_ERROR);
  same(curl::kGotNothing, CURLE_GOT_NOTHING);
  same(curl::kSendError, CURLE_SEND_ERROR);
  same(curl::kRecvError, CURLE_RECV_ERROR);
  same(curl::kSslCertProblem, CURLE_SSL_CERTPROBLEM);
  same(curl::kPeerFailedVerification, CURLE_PEER_FAILED_VERIFICATION);
  same(curl::kSslCaCertBadFile, CURLE_SSL_CACERT_BADFILE);
  same(curl::kErrorSize, CURL_ERROR_SIZE);
  same(curl::kGlobalAll, CURL_GLOBAL_ALL);
  same(curl::kMessageDone, CURLMSG_DONE);
  same(sizeof(curl::Message), sizeof(CURLMsg));
  same(offsetof(curl::Message, easy), offsetof(CURLMsg, easy_handle));
  same(offsetof(curl::Message, data), offsetof(CURLMsg, data));
  same(sizeof(std::int64_t), sizeof(curl_off_t));
  same(sizeof(int), sizeof(curl_socket_t));
}

}  // namespace
}  // namespace torchsnapshot
#else
TEST(CurlAbi, IsThatOfTheHeader) {
  GTEST_SKIP() << "no <curl/curl.h> to compare with: apt-get install libcurl4-openssl-dev";
}
#endif
