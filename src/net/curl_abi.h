// The part of libcurl's interface that is used, so that building needs no libcurl: it is loaded at run time
// (curl_library.h). Names and values of soname 4, which are fixed since 2006; curl_abi_test.cc holds them against
// <curl/curl.h> where that is installed.
#pragma once

#include <cstddef>

namespace torchsnapshot::curl {

// Options: numbers below 10000 take a long, then pointers, functions (20000) and curl_off_t (30000).
inline constexpr int kBufferSize = 98;
inline constexpr int kCaInfo = 10065;
inline constexpr int kConnectTimeoutMs = 156;
inline constexpr int kCustomRequest = 10036;
inline constexpr int kErrorBuffer = 10010;
inline constexpr int kHeaderData = 10029;
inline constexpr int kHeaderFunction = 20079;
inline constexpr int kHttpHeader = 10023;
inline constexpr int kHttpVersion = 84;
inline constexpr int kInFileSizeLarge = 30115;
inline constexpr int kNoBody = 44;
inline constexpr int kNoProxy = 10177;
inline constexpr int kNoSignal = 99;
inline constexpr int kPathAsIs = 234;
inline constexpr int kReadData = 10009;
inline constexpr int kReadFunction = 20012;
inline constexpr int kSeekData = 10168;
inline constexpr int kSeekFunction = 20167;
inline constexpr int kSuppressConnectHeaders = 265;
inline constexpr int kTcpKeepAlive = 213;
inline constexpr int kUpload = 46;
inline constexpr int kUploadBufferSize = 280;
inline constexpr int kUrl = 10002;
inline constexpr int kUserAgent = 10018;
inline constexpr int kWriteData = 10001;
inline constexpr int kWriteFunction = 20011;

inline constexpr long kHttpVersion11 = 2;
inline constexpr std::size_t kAbortRead = 0x10000000;  ///< what a read function returns to end the transfer

// What can be asked of a transfer.
inline constexpr int kInfoResponseCode = 0x200002;
inline constexpr int kInfoActiveSocket = 0x50002c;

// Results of a transfer.
inline constexpr int kOk = 0;
inline constexpr int kCouldntResolveProxy = 5;
inline constexpr int kCouldntResolveHost = 6;
inline constexpr int kCouldntConnect = 7;
inline constexpr int kWeirdServerReply = 8;
inline constexpr int kPartialFile = 18;
inline constexpr int kWriteError = 23;
inline constexpr int kOutOfMemory = 27;
inline constexpr int kOperationTimedOut = 28;
inline constexpr int kSslConnectError = 35;
inline constexpr int kGotNothing = 52;
inline constexpr int kSendError = 55;
inline constexpr int kRecvError = 56;
inline constexpr int kSslCertProblem = 58;
inline constexpr int kPeerFailedVerification = 60;
inline constexpr int kSslCaCertBadFile = 77;

inline constexpr std::size_t kErrorSize = 256;
inline constexpr long kGlobalAll = 3;
inline constexpr int kMessageDone = 1;

/// CURLMsg
struct Message {
  int message;
  void* easy;
  union {
    void* whatever;
    int result;
  } data;
};

}  // namespace torchsnapshot::curl
