include $(sort $(wildcard $(BR2_EXTERNAL_DPSD_PATH)/package/*/*.mk))
