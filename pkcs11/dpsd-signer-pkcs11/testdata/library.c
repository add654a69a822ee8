/*
 * A PKCS#11 library that fails like real ones. It calls the library PKCS11_REAL, except that it
 * produces the fault PKCS11_FAULT. It appends a line for each login to the file PKCS11_LOG.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pkcs11go.h"

static CK_FUNCTION_LIST real, ours;

static int fault(const char *name) {
	const char *is = getenv("PKCS11_FAULT");
	return is != NULL && strcmp(is, name) == 0;
}

static void hang(void) {
	for (;;) pause();
}

static CK_RV initialize(CK_VOID_PTR args) {
	if (fault("initialize-hangs")) hang();
	if (fault("initialize-crashes")) raise(SIGSEGV);
	if (fault("initialize-fails")) return CKR_GENERAL_ERROR;
	return real.C_Initialize(args);
}

static CK_RV login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, CK_ULONG length) {
	CK_RV rv = real.C_Login(session, user, pin, length);
	int log = open(getenv("PKCS11_LOG"), O_WRONLY | O_APPEND | O_CREAT, 0600);
	if (log >= 0) {
		if (write(log, "login\n", 6) != 6) abort();
		close(log);
	}
	return rv;
}

/* Some libraries do not report the number of wrong PINs. */
static CK_RV token_info(CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info) {
	CK_RV rv = real.C_GetTokenInfo(slot, info);
	if (fault("no-pin-counter")) info->flags &= ~(CK_FLAGS)(CKF_USER_PIN_COUNT_LOW | CKF_USER_PIN_FINAL_TRY);
	if (fault("pin-final-try")) info->flags |= CKF_USER_PIN_FINAL_TRY;
	if (fault("pin-locked")) info->flags |= CKF_USER_PIN_LOCKED;
	return rv;
}

static CK_RV sign_init(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key) {
	if (fault("no-pss") && mechanism->mechanism == CKM_RSA_PKCS_PSS) return CKR_MECHANISM_PARAM_INVALID;
	return real.C_SignInit(session, mechanism, key);
}

static CK_RV sign(CK_SESSION_HANDLE session, CK_BYTE_PTR data, CK_ULONG length, CK_BYTE_PTR signature, CK_ULONG_PTR size) {
	if (fault("sign-hangs")) hang();
	if (fault("sign-crashes")) raise(SIGSEGV);
	if (fault("sign-aborts")) abort();
	if (fault("sign-exits")) _exit(0);
	if (fault("device-removed")) return CKR_DEVICE_REMOVED;
	CK_RV rv = real.C_Sign(session, data, length, signature, size);
	if (fault("wrong-signature") && rv == CKR_OK && signature != NULL) signature[*size - 1] ^= 1;
	if (fault("empty-signature") && rv == CKR_OK && signature != NULL) *size = 0;
	if (fault("odd-signature") && rv == CKR_OK && signature != NULL) *size -= 1;
	return rv;
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list) {
	void *library = dlopen(getenv("PKCS11_REAL"), RTLD_NOW);
	CK_FUNCTION_LIST_PTR functions;
	if (library == NULL) return CKR_GENERAL_ERROR;
	CK_C_GetFunctionList get = (CK_C_GetFunctionList)dlsym(library, "C_GetFunctionList");
	if (get == NULL || get(&functions) != CKR_OK) return CKR_GENERAL_ERROR;
	real = ours = *functions;
	ours.C_Initialize = initialize;
	ours.C_Login = login;
	ours.C_GetTokenInfo = token_info;
	ours.C_SignInit = sign_init;
	ours.C_Sign = sign;
	*list = &ours;
	return CKR_OK;
}
